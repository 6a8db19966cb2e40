"""Measures what an upstream adds to a request, and what its death does to those that run.

    python -m benchmarks.upstreams [--rounds 10] [--requests 300] [--rate 50]

``demo-echo`` is asked at a server of its own and through a second server that has it as an
upstream, in turns: the latency of one request at a time, requests a second and CPU time at 32 at
once, streams. Then requests come at ``--rate`` a second while the upstream is killed and started
again, three seconds later. Exit code 1 if a request is left without an answer, or fails once it
is back.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import urllib.request
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.gateway import MODEL
from benchmarks.http_client import Target, make_target
from benchmarks.load import CHAT, PROMPT, Report, chat_body, closed_loop, open_loop, percentile, run
from benchmarks.machine import describe, load_average
from benchmarks.servers import BitingLip

_DIRECT, _THROUGH = "asked itself", "through an upstream"
_ONCE = ("demo=never", "workers.spare=false")
_AWAY = 3.0  #: seconds between the death of the upstream and its next start
_QUIET = 3.0  #: seconds of load before its death
_LONGEST = 30.0  #: seconds of load in all


@dataclass
class Way:
    """Holds one way to the model: where requests go, and the server whose time counts."""

    whole: Target
    streamed: Target
    server: BitingLip


def start(folder: Path, stack: ExitStack) -> dict[str, Way]:
    """Start both servers; the second has the first one's key in a file."""
    for name in ("inner", "front"):
        (folder / name).mkdir()
    slots = f"models.{MODEL}.fake.batch_size=256"
    settings = (f"models.{MODEL}.engine=fake", slots, *_ONCE)
    inner = stack.enter_context(BitingLip(folder / "inner", *settings))
    key = folder / "front" / "upstream.key"
    key.touch(mode=0o600)
    key.write_text(inner.key or "")
    upstream = {"url": [f"{inner.url}/v1"], "key_file": str(key), "model": MODEL}
    front = BitingLip(folder / "front", f"models.{MODEL}.upstream={json.dumps(upstream)}", *_ONCE)
    servers = {_DIRECT: inner, _THROUGH: stack.enter_context(front)}
    return {name: _way(server) for name, server in servers.items()}


def _way(server: BitingLip) -> Way:
    bodies = [chat_body(MODEL, PROMPT, 8), chat_body(MODEL, PROMPT, 200, stream=True)]
    whole, streamed = (make_target(server.url + CHAT, [body], server.key) for body in bodies)
    return Way(whole, streamed, server)


def _checked(report: Report) -> Report:
    if report.errors:
        raise SystemExit(f"requests failed: {report.errors}")
    return report


def measure(ways: dict[str, Way], asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return medians of the rounds, by way: milliseconds, requests and tokens a second, CPU us."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(asked.rounds + 1):
        for name, way in ways.items():
            alone = _checked(run(closed_loop(way.whole, concurrency=1, requests=asked.requests)))
            before = sum(way.server.cpu_seconds())
            many = _checked(
                run(closed_loop(way.whole, concurrency=32, requests=asked.requests * 4))
            )
            spent = sum(way.server.cpu_seconds()) - before
            streams = _checked(run(closed_loop(way.streamed, concurrency=32, requests=64)))
            if number:  # the first warms up
                found = {
                    "p50": percentile(alone.latency, 50) * 1e3,
                    "p99": percentile(alone.latency, 99) * 1e3,
                    "rate": many.requests_per_s,
                    "cpu": spent / len(many.samples) * 1e6,
                    "tokens": streams.tokens_per_s,
                    "first": percentile(streams.first_token, 50) * 1e3,
                }
                rounds[name].append(found)
    return {
        name: {each: statistics.median(one[each] for one in found) for each in found[0]}
        for name, found in rounds.items()
    }


async def kill_and_start(way: Way, inner: BitingLip, rate: float) -> tuple[Report, float, float]:
    """Return the requests sent meanwhile, and the moments of the death and of the next start."""
    load = asyncio.create_task(open_loop(way.whole, rate=rate, seconds=_LONGEST))
    await asyncio.sleep(_QUIET)
    died = perf_counter()
    os.killpg(inner.pid, signal.SIGKILL)
    await asyncio.sleep(_AWAY)
    await asyncio.to_thread(inner.__enter__)
    back = perf_counter()
    return await load, died, back


def tell(report: Report, died: float, back: float) -> bool:
    """Print what became of the requests; return whether all is as it should be."""
    phases: dict[str, list[Any]] = {"before": [], "while it was away": [], "after": []}
    regained = min((s.started for s in report.good if s.started > back), default=float("inf"))
    for sample in report.samples:
        phase = "before" if sample.ended < died else "while it was away"
        phases["after" if sample.started >= regained else phase].append(sample)
    for phase, samples in phases.items():
        answers = ", ".join(
            f"{count} x {status}"
            for status, count in Counter(s.error or "200" for s in samples).items()
        )
        slowest = max((s.ended - s.started for s in samples), default=0.0)
        print(f"| {phase} | {answers or '-'} | {slowest * 1e3:.0f} ms |")
    print(f"\nThe first good answer came {regained - back:.1f} s after the next start.")
    unanswered = any(s.status == 0 for s in report.samples)
    return not unanswered and not any(s.error for s in phases["after"]) and bool(phases["after"])


def running(server: BitingLip) -> int:
    """Return how many requests the server thinks are running or waiting."""
    headers = {"Authorization": f"Bearer {server.key}"}
    request = urllib.request.Request(f"{server.url}/api/v1/tasks?status=running", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return len(json.load(answer)["data"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=300, help="of one round, one at a time")
    parser.add_argument("--rate", type=float, default=50, help="requests a second at its death")
    asked, load = parser.parse_args(), load_average()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ways = start(Path(folder), stack)
        found = measure(ways, asked)
        print("| " + " | ".join(["", *ways]) + " |\n|---|---|---|")
        for key, title, unit in (
            ("p50", "one request at a time, p50", "ms"),
            ("p99", "p99", "ms"),
            ("rate", "32 at once", "requests/s"),
            ("cpu", "CPU time of a request, this server's processes", "us"),
            ("tokens", "32 streams of 200 tokens", "tokens/s"),
            ("first", "their first token, p50", "ms"),
        ):
            places = 2 if unit == "ms" else 0
            print(
                f"| {title} | "
                + " | ".join(f"{f[key]:.{places}f} {unit}" for f in found.values())
                + " |"
            )
        print("\n| the upstream is killed | answers | slowest |\n|---|---|---|")
        through = ways[_THROUGH]
        fine = tell(*asyncio.run(kill_and_start(through, ways[_DIRECT].server, asked.rate)))
        stuck = running(through.server)
        print(f"Requests that are left afterwards: {stuck}.")
    print(f"\n{describe(load)}")
    return 0 if fine and not stuck else 1


if __name__ == "__main__":
    sys.exit(main())
