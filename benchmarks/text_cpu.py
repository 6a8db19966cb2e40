"""Compares text on a CPU, end to end: ``bitinglip serve`` and ``transformers serve``, in one run.

    python benchmarks/text_cpu.py [--streams 1 8 16] [--tokens 128] [--rounds 3] [--work DIR]

The model is a Llama of 135M parameters (30 layers of 576, 9 heads, 3 of them for k/v, 49,152
words) with random bf16 weights, made here once. It has no end token, so every answer has all its
tokens; requests are greedy and streamed, each with another prompt. ``transformers serve`` runs
twice, without and with its continuous batching, at its own defaults. A round sends N requests at
once and divides all completion tokens (the server's own ``usage``) by the time until the last
answer ended. The servers take turns within a round, the figures are medians over the rounds, and
the ratio is against the better mode of ``transformers serve`` at that number of streams.

On a busy machine tokens per second say little, the less the more threads wait for each other. With
``--threads 1`` each server computes with one thread, and the second table counts: the CPU time that
all of a server's processes take for a token, which other work changes little.

``transformers serve`` needs fastapi, uvicorn and openai: they come with ``pip install -e .[dev]``.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.http_client import make_target
from benchmarks.load import CHAT, Report, chat_body, closed_loop, run, spread
from benchmarks.machine import describe, load_average
from benchmarks.random_llama import make_model
from benchmarks.servers import BitingLip, Server, import_model, transformers_serve

NAME = "bench"
OURS = "bitinglip"


@dataclass
class Contestant:
    """Holds a server that runs, how it is asked, and its reports by number of streams."""

    server: Server
    model: str
    more: dict[str, Any]
    reports: dict[int, list[Report]] = field(default_factory=dict)
    cpu: dict[int, list[float]] = field(default_factory=dict)  #: seconds of a token

    def speed(self, streams: int) -> float:
        return statistics.median(report.tokens_per_s for report in self.reports[streams])

    def round(self, streams: int, tokens: int, prompts: list[str]) -> None:
        bodies = [chat_body(self.model, each, tokens, stream=True, **self.more) for each in prompts]
        target = make_target(self.server.url + CHAT, bodies, self.server.key)
        before = sum(self.server.cpu_seconds())
        report = run(closed_loop(target, concurrency=streams, requests=streams))
        seconds = sum(self.server.cpu_seconds()) - before
        _check(self.server.name, report, streams * tokens)
        self.reports.setdefault(streams, []).append(report)
        self.cpu.setdefault(streams, []).append(seconds / (streams * tokens))

    def forget(self) -> None:
        """Forget what was measured so far."""
        self.reports.clear()
        self.cpu.clear()


def _check(name: str, report: Report, tokens: int) -> None:
    if report.errors or report.tokens != tokens or report.tokens_from != "usage":
        raise SystemExit(f"{name}: {tokens} tokens expected, got {report.as_dict()}")


def _prompts(number: int, words: int, salt: str) -> list[str]:
    """Return prompts that differ from the first word on, so that no cache of prefixes answers."""
    return [f"{salt}{i} " + " ".join(f"w{i + 7 * j}" for j in range(words)) for i in range(number)]


def _contestants(work: Path, model: Path, modes: list[str], stack: ExitStack) -> list[Contestant]:
    found = []
    for mode in modes:
        if mode == OURS:
            import_model(work, model, NAME)
            ours = stack.enter_context(BitingLip(work))
            more = {"temperature": 0, "stream_options": {"include_usage": True}}
            found.append(Contestant(ours, NAME, {**more, "ignore_eos": True}))
        else:
            theirs = transformers_serve(work, model, continuous_batching=mode == "cb")
            found.append(Contestant(stack.enter_context(theirs), str(model), {"temperature": 0}))
    return found


def measure(contestants: list[Contestant], asked: argparse.Namespace) -> None:
    for contestant in contestants:  # loads the model, fills caches
        for streams in (1, max(asked.streams)):
            contestant.round(streams, 8, _prompts(streams, 8, "warm"))
        contestant.forget()
        contestant.server.settle()
    for number in range(asked.rounds):
        for streams in asked.streams:
            for contestant in contestants:
                prompts = _prompts(streams, asked.prompt_words, f"r{number}s{streams}n")
                contestant.round(streams, asked.tokens, prompts)
                _say(contestant, streams)


def _say(contestant: Contestant, streams: int) -> None:
    report = contestant.reports[streams][-1]
    name, speed = contestant.server.name, report.tokens_per_s
    print(f"  {name:<22} {streams:>3} streams {speed:8.1f} tokens/s", file=sys.stderr, flush=True)


def _idle_share(server: Server) -> float:
    """Return the CPU seconds per second that an idle server takes beside the measured one."""
    before = sum(server.cpu_seconds())
    time.sleep(1.0)
    return sum(server.cpu_seconds()) - before


def result(contestants: list[Contestant], streams: list[int]) -> dict[str, Any]:
    rows = []
    for number in streams:
        speeds = {each.server.name: each.speed(number) for each in contestants}
        row: dict[str, Any] = {"streams": number, "tokens_per_s": speeds}
        row["ttft_ms"] = {each.server.name: _first_token(each, number) for each in contestants}
        best = max((v for name, v in speeds.items() if name != OURS), default=0.0)
        row["ratio"] = speeds[OURS] / best if best and OURS in speeds else None
        row["cpu_ms"] = {
            each.server.name: 1000 * statistics.median(each.cpu[number]) for each in contestants
        }
        rows.append(row)
    return {"rows": rows, "idle_cpu": {e.server.name: _idle_share(e.server) for e in contestants}}


def _first_token(contestant: Contestant, streams: int) -> float:
    times = [t for report in contestant.reports[streams] for t in report.first_token]
    return spread(times)["p50"]


def table(found: dict[str, Any]) -> str:
    """Write Markdown, as it stands in RESULTS.md."""
    names = list(found["rows"][0]["tokens_per_s"])
    lines = ["| streams | " + " | ".join(f"{n}, tokens/s (TTFT p50)" for n in names) + " | ratio |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for row in found["rows"]:
        cells = [f"{row['tokens_per_s'][n]:.1f} ({row['ttft_ms'][n]:.0f} ms)" for n in names]
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        lines.append(f"| {row['streams']} | " + " | ".join(cells) + f" | {ratio} |")
    lines += [
        "",
        "| streams | " + " | ".join(f"{n}, CPU ms of a token" for n in names) + " | ratio |",
    ]
    lines.append("|---" * (len(names) + 2) + "|")
    for row in found["rows"]:
        times = row["cpu_ms"]
        others = [time for name, time in times.items() if name != OURS]
        ratio = f"{min(others) / times[OURS]:.2f}" if others and OURS in times else "-"
        cells = [f"{times[name]:.1f}" for name in names]
        lines.append(f"| {row['streams']} | " + " | ".join(cells) + f" | {ratio} |")
    idle = ", ".join(f"{name} {share:.2f}" for name, share in found["idle_cpu"].items())
    return "\n".join([*lines, "", f"CPU of an idle server (cores): {idle}"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--prompt-words", type=int, default=33, help="about three tokens each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for the model (kept), logs and the home")
    parser.add_argument(
        "--modes", nargs="+", choices=["plain", "cb", OURS], default=["plain", "cb", OURS]
    )
    parser.add_argument("--threads", type=int, help="of each server's computation")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> int:
    asked, load = _arguments(), load_average()
    if asked.threads:  # the servers inherit it
        os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-text-")))
        cache = asked.work.absolute() if asked.work else scratch
        model = make_model(cache / "random-llama-135m")
        contestants = _contestants(scratch, model, asked.modes, stack)
        measure(contestants, asked)
        found = {**result(contestants, asked.streams), "machine": describe(load)}
    print(json.dumps(found, indent=2) if asked.json else f"{table(found)}\n\n{found['machine']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
