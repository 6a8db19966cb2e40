"""Loads a server that speaks OpenAI's chat completions (or any JSON over POST).

    python benchmarks/load.py http://127.0.0.1:8080 --model demo-echo --key $KEY \
        --concurrency 32 --requests 5000 --max-tokens 8 [--stream] [--json]

A closed loop keeps ``--concurrency`` requests running; ``--rate`` is an open loop, in which a
request is timed from the moment it was due, so a slow server cannot hide behind its own slowness.
Inter-token times are those between two reads that brought tokens: a server that sends several at
once shows fewer and longer ones. Tokens are the server's own ``completion_tokens`` where it says
them, else chunks with text.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import uvloop

from benchmarks.http_client import Connection, Sample, Target, make_target

CHAT = "/v1/chat/completions"
PERCENTILES = (50, 95, 99)
PROMPT = "The quick brown fox jumps over the lazy dog while seven old owls look on"


@dataclass(frozen=True, slots=True)
class Report:
    """Holds what a run of requests came to."""

    seconds: float
    samples: list[Sample]

    @property
    def good(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.error is None]

    @property
    def errors(self) -> dict[str, int]:
        return dict(Counter(sample.error for sample in self.samples if sample.error))

    @property
    def requests_per_s(self) -> float:
        return len(self.good) / self.seconds

    @property
    def tokens(self) -> int:
        return sum(sample.tokens for sample in self.good)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_from(self) -> str:
        return "usage" if all(s.usage is not None for s in self.good) else "chunks"

    @property
    def latency(self) -> list[float]:
        return [sample.ended - sample.started for sample in self.good]

    @property
    def first_token(self) -> list[float]:
        return [sample.first - sample.started for sample in self.good if sample.chunks]

    @property
    def gaps(self) -> list[float]:
        return [gap for sample in self.good for gap in sample.gaps]

    @property
    def longest_stall(self) -> float:
        """Return the longest that a stream went without a token, once it had begun."""
        return max(self.gaps, default=0.0)

    def as_dict(self) -> dict[str, Any]:
        return {
            "requests": len(self.samples),
            "errors": self.errors,
            "seconds": round(self.seconds, 3),
            "requests_per_s": round(self.requests_per_s, 2),
            "tokens": self.tokens,
            "tokens_from": self.tokens_from,
            "tokens_per_s": round(self.tokens_per_s, 2),
            "latency_ms": spread(self.latency),
            "ttft_ms": spread(self.first_token),
            "inter_token_ms": spread(self.gaps),
            "longest_stall_ms": round(self.longest_stall * 1e3, 2),
        }


def percentile(values: list[float], percent: float) -> float:
    """Return the nearest rank; 0 of nothing."""
    if not values:
        return 0.0
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the percentiles, in milliseconds."""
    return {f"p{p}": round(percentile(seconds, p) * 1e3, 3) for p in PERCENTILES}


async def closed_loop(
    target: Target, *, concurrency: int, requests: int | None = None, seconds: float | None = None
) -> Report:
    """Keep ``concurrency`` requests running until there were ``requests``, or for ``seconds``."""
    if requests is None and seconds is None:
        raise ValueError("say how many requests, or how long")
    samples: list[Sample] = []
    turns = target.turns()
    started = perf_counter()
    budget = _Budget(requests, None if seconds is None else started + seconds)

    async def one_client() -> None:
        connection = await Connection.open(target)
        while budget.take():
            if not connection.usable:
                connection = await Connection.open(target)
            samples.append(await connection.send(next(turns)))
        connection.close()

    await _gather(one_client() for _ in range(concurrency))
    return Report(perf_counter() - started, samples)


@dataclass(slots=True)
class _Budget:
    requests: int | None
    until: float | None

    def take(self) -> bool:
        if self.until is not None and perf_counter() >= self.until:
            return False
        if self.requests is None:
            return True
        self.requests -= 1
        return self.requests >= 0


async def open_loop(target: Target, *, rate: float, seconds: float) -> Report:
    """Send ``rate`` requests a second, whether or not earlier ones were answered."""
    idle: list[Connection] = [await Connection.open(target) for _ in range(8)]
    samples: list[Sample] = []
    turns = target.turns()
    started = perf_counter()

    async def one_request(due: float) -> None:
        while idle and not idle[-1].usable:  # the server has closed it meanwhile
            idle.pop()
        connection = idle.pop() if idle else await Connection.open(target)
        samples.append(await connection.send(next(turns), due))
        if connection.usable:
            idle.append(connection)

    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = started + number / rate
            if (pause := due - perf_counter()) > 0:
                await asyncio.sleep(pause)
            group.create_task(one_request(due))
    for connection in idle:
        connection.close()
    return Report(perf_counter() - started, samples)


async def _gather(clients: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client)


def run(work: Coroutine[Any, Any, Report]) -> Report:
    """``asyncio.run`` on uvloop, for callers that are not async."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def chat_body(model: str, prompt: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, **more}


def table(report: Report) -> str:
    """Write the report for people."""
    facts = report.as_dict()
    lines = [
        f"requests     {facts['requests']} in {facts['seconds']} s = {facts['requests_per_s']}/s",
        f"tokens       {facts['tokens']} ({facts['tokens_from']}) = {facts['tokens_per_s']}/s",
        "",
        f"{'ms':<12}" + "".join(f"{f'p{p}':>10}" for p in PERCENTILES),
    ]
    for name in ("latency", "ttft", "inter_token"):
        row = facts[f"{name}_ms"]
        lines.append(f"{name:<12}" + "".join(f"{row[f'p{p}']:>10}" for p in PERCENTILES))
    lines.append(f"longest stall {facts['longest_stall_ms']} ms")
    lines += [f"error        {error}: {count}" for error, count in facts["errors"].items()]
    return "\n".join(lines)


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("url", help=f"base URL, or with a path of its own in place of {CHAT}")
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", help="bearer key")
    parser.add_argument("--key-file", type=Path, help="file with the key, such as HOME/admin.key")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--requests", type=int, help="how many (default 1000, unless --seconds)")
    parser.add_argument("--seconds", type=float, help="how long")
    parser.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--body", type=json.loads, default={}, help="further JSON fields")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(words)


def _work(
    target: Target, requests: int | None, asked: argparse.Namespace
) -> Coroutine[Any, Any, Report]:
    if asked.rate:
        seconds = asked.seconds or (requests or 1000) / asked.rate
        return open_loop(target, rate=asked.rate, seconds=seconds)
    return closed_loop(
        target, concurrency=asked.concurrency, requests=requests, seconds=asked.seconds
    )


def main(words: list[str] | None = None) -> int:
    asked = _arguments(words)
    key = asked.key_file.read_text().strip() if asked.key_file else asked.key
    url = asked.url if urlsplit(asked.url).path.strip("/") else asked.url.rstrip("/") + CHAT
    more = {**asked.body}
    if asked.stream:
        more = {"stream": True, "stream_options": {"include_usage": True}, **more}
    target = make_target(url, [chat_body(asked.model, asked.prompt, asked.max_tokens, **more)], key)
    requests = asked.requests or (None if asked.seconds else 1000)
    try:
        report = run(_work(target, requests, asked))
    except (OSError, ExceptionGroup) as failed:
        first = failed.exceptions[0] if isinstance(failed, ExceptionGroup) else failed
        print(f"{asked.url}: {first}", file=sys.stderr)
        return 1
    print(json.dumps(report.as_dict(), indent=2) if asked.json else table(report))
    return 1 if report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
