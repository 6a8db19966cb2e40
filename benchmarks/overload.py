"""Sends ten times more than the server can do, for a minute: what it still does, what it refuses.

    python -m benchmarks.overload [--times 10] [--seconds 60] [--json]

``demo-echo`` is slowed down to some 160 requests/s, so that the load generator is not what breaks.
First the peak is measured (closed loop, all places taken), then the storm comes (open loop), then
one request after another until they take as long as before. Refusals are timed from the moment
they were due; memory is the server's own process.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.http_client import Connection, Sample, Target, make_target
from benchmarks.load import CHAT, PROMPT, chat_body, closed_loop, open_loop, percentile, run
from benchmarks.machine import describe, load_average
from benchmarks.servers import BitingLip

MODEL, MAX_TOKENS = "demo-echo", 5
SLOTS, WAITING, TOKENS_PER_SECOND = 16, 64, 50
_SETTINGS = (
    f"models.{MODEL}.engine=fake",
    f"models.{MODEL}.fake={{batch_size: {SLOTS}, tokens_per_second: {TOKENS_PER_SECOND}}}",
    f"queue.max_waiting={WAITING}",
)
_PEAK_SECONDS = 10.0
_ALONE = MAX_TOKENS / TOKENS_PER_SECOND  #: seconds of a request without a queue


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        BitingLip(Path(folder), *_SETTINGS) as server,
    ):
        body = chat_body(MODEL, PROMPT, MAX_TOKENS)
        target = make_target(server.url + CHAT, [body], server.key)
        run(closed_loop(target, concurrency=1, requests=5))  # the model is loaded by this
        server.settle()
        busy = SLOTS + WAITING // 2
        peak = run(closed_loop(target, concurrency=busy, seconds=_PEAK_SECONDS)).requests_per_s
        memory = [_memory(server.pid)]
        storm = run(open_loop(target, rate=asked.times * peak, seconds=asked.seconds))
        ended = time.monotonic()
        memory.append(_memory(server.pid))
        recovery = asyncio.run(_recovery(target, ended))
    refused = [sample for sample in storm.samples if sample.error]
    answered = [s.ended - s.started for s in storm.samples if not s.error]
    return {
        "peak_requests_per_s": round(peak, 1),
        "offered_requests_per_s": round(asked.times * peak, 1),
        "goodput_requests_per_s": round(storm.requests_per_s, 1),
        "goodput_share": round(storm.requests_per_s / peak, 3),
        "refused": len(refused),
        "errors": storm.errors,
        "refusal_ms": _spread([sample.ended - sample.started for sample in refused]),
        "answer_ms": _spread(answered),
        "memory_mb": [round(each / 1e6, 1) for each in memory],
        "recovery_s": round(recovery, 3),
    }


async def _recovery(target: Target, since: float) -> float:
    """Return seconds until a request takes no more than twice what it takes alone."""
    turns = target.turns()
    connection = await Connection.open(target)
    while True:
        sample: Sample = await connection.send(next(turns))
        if sample.error is None and sample.ended - sample.started < 2 * _ALONE:
            connection.close()
            return time.monotonic() - since
        if not connection.usable:
            connection = await Connection.open(target)


def _memory(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def _spread(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}": round(percentile(seconds, p) * 1e3, 2) for p in (50, 99)}


def table(found: dict[str, Any]) -> str:
    refusal, answer = found["refusal_ms"], found["answer_ms"]
    rows = [
        ("peak", f"{found['peak_requests_per_s']} requests/s"),
        ("offered", f"{found['offered_requests_per_s']} requests/s"),
        (
            "answered",
            f"{found['goodput_requests_per_s']} requests/s, {found['goodput_share']:.0%} of peak",
        ),
        ("refused", ", ".join(f"{n} x {name}" for name, n in found["errors"].items()) or "0"),
        ("a refusal takes", f"p50 {refusal['p50']} ms, p99 {refusal['p99']} ms"),
        ("an answer takes", f"p50 {answer['p50']} ms, p99 {answer['p99']} ms"),
        ("memory before, after", " MB, ".join(map(str, found["memory_mb"])) + " MB"),
        ("as before after", f"{found['recovery_s']} s"),
    ]
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(words)
    before = load_average()
    found = measure(asked)
    print(json.dumps(found, indent=2) if asked.json else f"| | |\n|---|---|\n{table(found)}")
    print(f"\n{describe(before)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
