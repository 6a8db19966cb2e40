"""Compares the gateway on ``demo-echo`` with a bare FastAPI handler, in one run.

    python benchmarks/gateway.py [--concurrency 32] [--seconds 5] [--rounds 3] [--json]

Ours does its whole work for a key that has limits and quotas, high enough to refuse nothing: key,
scope, rates, places, usage, queue, a worker process, metrics; see bare.py for the other. Guard and
cache are off. Three figures, the two servers taking turns, medians over the rounds:

- requests/s at ``--concurrency``, closed loop, whole answers, and the CPU time that each took: the
  time of the server's process and of its workers, and the other's over ours; compare these where
  the machine does other work, too;
- what we add to the latency at ``--rate`` requests a second, open loop;
- tokens/s of ``--sse-streams`` SSE streams begun at once, the CPU time of a token, and the longest
  that any of them stood still once it had begun (ours alone).
"""

import argparse
import json
import statistics
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.http_client import Target, make_target
from benchmarks.load import (
    CHAT,
    PROMPT,
    Report,
    chat_body,
    closed_loop,
    open_loop,
    percentile,
    run,
)
from benchmarks.machine import describe, load_average
from benchmarks.servers import BitingLip, Server, bare

MODEL = "demo-echo"
MAX_TOKENS = 8
_BODY = chat_body(MODEL, PROMPT, MAX_TOKENS)
_TIER = "enterprise"
_PLENTY = 100_000_000
_LIMITS = ("requests_per_minute", "requests_per_hour", "concurrent_requests", "daily.tokens")


def _whole(server: Server) -> Target:
    return make_target(server.url + CHAT, [_BODY], server.key)


def _checked(name: str, report: Report) -> Report:
    if report.errors:
        raise SystemExit(f"{name}: {report.errors}")
    return report


def throughput(servers: list[Server], asked: argparse.Namespace) -> dict[str, Any]:
    """Return requests per second of each side, their ratio, and the CPU time of a request."""
    speeds: dict[str, list[float]] = {server.name: [] for server in servers}
    costs: dict[str, list[list[float]]] = {server.name: [] for server in servers}
    for _ in range(asked.rounds):
        for server in servers:
            before = server.cpu_seconds()
            work = closed_loop(_whole(server), concurrency=asked.concurrency, seconds=asked.seconds)
            report = _checked(server.name, run(work))
            spent = zip(before, server.cpu_seconds(), strict=True)
            speeds[server.name].append(report.requests_per_s)
            costs[server.name].append([(b - a) / len(report.good) * 1e6 for a, b in spent])
    theirs, ours = speeds.values()
    return {
        "requests_per_s": {name: statistics.median(found) for name, found in speeds.items()},
        "rounds": speeds,
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "cpu_us": {
            name: [statistics.median(each) for each in zip(*found, strict=True)]
            for name, found in costs.items()
        },
    }


def latency(servers: list[Server], asked: argparse.Namespace) -> dict[str, Any]:
    """Return p50 and p99 of each in milliseconds, and what ours adds."""
    seen: dict[str, list[list[float]]] = {server.name: [] for server in servers}
    for _ in range(asked.rounds):
        for server in servers:
            work = open_loop(_whole(server), rate=asked.rate, seconds=asked.seconds)
            seen[server.name].append(_checked(server.name, run(work)).latency)
    found: dict[str, Any] = {}
    for percent in (50, 99):
        each = {
            name: statistics.median(percentile(values, percent) * 1e3 for values in rounds)
            for name, rounds in seen.items()
        }
        theirs, ours = each.values()
        found[f"p{percent}_ms"] = {**each, "added": ours - theirs}
    return found


def streams(server: Server, asked: argparse.Namespace) -> dict[str, Any]:
    """Run all streams at once, once per round."""
    body = chat_body(MODEL, PROMPT, asked.sse_tokens, stream=True)
    target = make_target(server.url + CHAT, [body], server.key)
    reports, costs = [], []
    for _ in range(asked.rounds):
        work = closed_loop(target, concurrency=asked.sse_streams, requests=asked.sse_streams)
        before = server.cpu_seconds()
        reports.append(_checked(server.name, run(work)))
        spent = zip(before, server.cpu_seconds(), strict=True)
        costs.append([(b - a) / reports[-1].tokens * 1e6 for a, b in spent])
    expected = asked.sse_streams * asked.sse_tokens
    if any(report.tokens != expected for report in reports):
        raise SystemExit(f"{expected} tokens expected, got {[r.tokens for r in reports]}")
    return {
        "tokens_per_s": statistics.median(report.tokens_per_s for report in reports),
        "longest_stall_ms": max(report.longest_stall for report in reports) * 1e3,
        "ttft_p99_ms": max(percentile(report.first_token, 99) for report in reports) * 1e3,
        "cpu_us": [statistics.median(each) for each in zip(*costs, strict=True)],
    }


def _limited_key(server: Server) -> str:
    """Make the key that is measured: of a tier with limits, for text alone."""
    asked = {"name": "benchmark", "tier": _TIER, "scopes": ["inference:text"]}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"}
    url = f"{server.url}/api/v1/keys"
    request = urllib.request.Request(url, json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        key: str = json.load(answer)["key"]
        return key


def _answer_bytes(server: Server) -> int:
    """Return the size of an answer: both have to send about as much."""
    headers = {"Content-Type": "application/json"}
    if server.key:
        headers["Authorization"] = f"Bearer {server.key}"
    data = json.dumps(_BODY).encode()
    request = urllib.request.Request(server.url + CHAT, data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return len(answer.read())


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gateway-")))
        # As many slots as streams, so that none waits for another's end.
        slots = f"models.{MODEL}.fake.batch_size={max(64, asked.sse_streams)}"
        limits = [f"limits.tiers.{_TIER}.{name}={_PLENTY}" for name in _LIMITS]
        ours = BitingLip(work, slots, *limits, demo=True)
        servers: list[Server] = [stack.enter_context(bare(work)), stack.enter_context(ours)]
        ours.key = _limited_key(ours)
        sizes = {server.name: _answer_bytes(server) for server in servers}
        for server in servers:
            run(closed_loop(_whole(server), concurrency=asked.concurrency, seconds=1))
            server.settle()
        return {
            "answer_bytes": sizes,
            "throughput": throughput(servers, asked),
            "latency": latency(servers, asked),
            "streams": streams(ours, asked),
        }


def table(found: dict[str, Any], asked: argparse.Namespace) -> str:
    """Write Markdown, as it stands in RESULTS.md."""
    names = list(found["answer_bytes"])
    speeds, ratio = found["throughput"]["requests_per_s"], found["throughput"]["ratio"]
    lines = [f"| | {names[0]} | {names[1]} | |", "|---|---|---|---|"]
    row = " | ".join(f"{speeds[name]:.0f}" for name in names)
    lines.append(f"| requests/s, {asked.concurrency} at once | {row} | ratio {ratio:.2f} |")
    costs = found["throughput"]["cpu_us"]
    row = " | ".join(f"{costs[name][0]:.0f} + {costs[name][1]:.0f} us" for name in names)
    cpu_ratio = costs[names[0]][0] / costs[names[1]][0]
    lines.append(f"| CPU time of a request, server + workers | {row} | ratio {cpu_ratio:.2f} |")
    for label, each in found["latency"].items():
        row = " | ".join(f"{each[name]:.2f} ms" for name in names)
        title = f"latency {label.removesuffix('_ms')} at {asked.rate:g} requests/s"
        lines.append(f"| {title} | {row} | added {each['added']:.2f} ms |")
    sse = found["streams"]
    rest = f"longest stall {sse['longest_stall_ms']:.0f} ms, TTFT p99 {sse['ttft_p99_ms']:.0f} ms"
    title = f"{asked.sse_streams} SSE streams at once"
    lines.append(f"| {title} | - | {sse['tokens_per_s']:.0f} tokens/s | {rest} |")
    token = " + ".join(f"{cost:.1f}" for cost in sse["cpu_us"])
    lines.append(f"| CPU time of a streamed token, server + workers | - | {token} us | |")
    row = " | ".join(f"{found['answer_bytes'][name]}" for name in names)
    return "\n".join([*lines, f"| bytes of an answer | {row} | |"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=200, help="of the open loop")
    parser.add_argument("--sse-streams", type=int, default=200)
    parser.add_argument("--sse-tokens", type=int, default=500, help="of each stream")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> int:
    asked, load = _arguments(), load_average()
    found = {**measure(asked), "machine": describe(load)}
    text = f"{table(found, asked)}\n\n{found['machine']}"
    print(json.dumps(found, indent=2) if asked.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
