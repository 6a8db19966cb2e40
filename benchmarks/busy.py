"""Measure what one busy process on the machine does to models on the CPU.

    python -m benchmarks.busy [--rounds 5] [--tokens 300] [--spinning] [--folder DIR]

One server with the demo models and the random 135M Llama, one request at a time. Each request is
sent alone and then beside a process that keeps one core busy; the two take turns. With --spinning a
second server waits as the libraries do by themselves, threads spinning for long: it is asked for
the 135M shape alone, where the bound on spinning must cost no speed. That needs a quiet machine.

Bound: the demos are at most 2.5 times slower beside the busy process. Exit code 1 if not.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx

from benchmarks.machine import describe, load_average
from benchmarks.random_llama import make_model
from benchmarks.servers import BitingLip, import_model

_BOUND = 2.5
_SHAPE = "135M"
_SHAPE_TOKENS = 100
_GENERATE = "/api/v1/inference/text-generation"
_DRAW = "/api/v1/inference/image-generation"
_LIBRARY_SPINS = "300000"  #: of libgomp, where nothing is set
_BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:  # it does not outlive the benchmark
    for _ in range(1_000_000):
        pass
"""


@dataclass
class Work:
    """Holds a request, and the seconds that it took each time."""

    name: str
    route: str
    body: dict[str, Any]
    bound: float | None = None
    alone: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    spinning: list[float] = field(default_factory=list)  #: alone, as the libraries wait

    def ask(self, client: httpx.Client) -> float:
        began = perf_counter()
        client.post(self.route, json=self.body).raise_for_status()
        return perf_counter() - began

    @property
    def ratio(self) -> float:
        return statistics.median(self.busy) / statistics.median(self.alone)

    @property
    def holds(self) -> bool:
        return self.bound is None or self.ratio <= self.bound


def _works(tokens: int) -> list[Work]:
    text = {"temperature": 0, "ignore_eos": True}
    demo = {"model": "demo-text", "prompt": "Once", "max_tokens": tokens, **text}
    shape = {"model": _SHAPE, "prompt": "Once", "max_tokens": _SHAPE_TOKENS, **text}
    image = {"model": "demo-image", "prompt": "a fox", "width": 64, "height": 64, "steps": 50}
    return [
        Work(f"demo-text, {tokens} tokens", _GENERATE, demo, _BOUND),
        Work("demo-image, 64x64, 50 steps", _DRAW, image, _BOUND),
        Work(f"{_SHAPE} shape, {_SHAPE_TOKENS} tokens", _GENERATE, shape),
    ]


@contextmanager
def _busy_process() -> Iterator[None]:
    """Keep one core busy, from a session of its own as another program would."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _server(work: Path, model: Path, *, spins: str | None) -> Iterator[httpx.Client]:
    work.mkdir()
    import_model(work, model, _SHAPE)
    with ExitStack() as stack:
        if spins is not None:
            os.environ["GOMP_SPINCOUNT"] = spins
        try:
            server = stack.enter_context(BitingLip(work, demo=True))
        finally:
            os.environ.pop("GOMP_SPINCOUNT", None)
        headers = {"Authorization": f"Bearer {server.key}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=600) as client:
            yield client


def measure(
    works: list[Work], ours: httpx.Client, spinning: httpx.Client | None, rounds: int
) -> None:
    """Load each model by a first request, then take the times in turns."""
    for work in works:
        work.ask(ours)
    if spinning is not None:
        works[-1].ask(spinning)
    for _ in range(rounds):
        for work in works:
            work.alone.append(work.ask(ours))
            if spinning is not None and work.bound is None:
                work.spinning.append(work.ask(spinning))
            with _busy_process():
                work.busy.append(work.ask(ours))
            told = f"{work.name:<30} alone {work.alone[-1]:6.2f} s  busy {work.busy[-1]:6.2f} s"
            print(f"  {told}", file=sys.stderr, flush=True)


def table(works: list[Work]) -> str:
    """Write Markdown, as it stands in RESULTS.md."""
    lines = ["| | alone, s | beside a busy process, s | times slower | alone, spinning, s |"]
    lines.append("|---|---|---|---|---|")
    lines += [
        f"| {work.name} | {_told(work.alone)} | {_told(work.busy)} | {work.ratio:.2f} "
        f"| {_told(work.spinning)} |"
        for work in works
    ]
    return "\n".join(lines)


def _told(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--spinning", action="store_true", help="compare with the libraries' own")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    asked = parser.parse_args()
    load = load_average()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what runs is ended
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        parser.error("GOMP_SPINCOUNT and OMP_WAIT_POLICY are set: ours would not be measured")
    works = _works(asked.tokens)
    model = make_model(asked.folder / "llama-135m")
    with tempfile.TemporaryDirectory(prefix="bench-busy-") as folder:
        scratch = Path(folder)
        theirs = _server(scratch / "spinning", model, spins=_LIBRARY_SPINS)
        with (
            _server(scratch / "ours", model, spins=None) as ours,
            theirs if asked.spinning else nullcontext() as spinning,
        ):
            measure(works, ours, spinning, asked.rounds)
    print(f"{table(works)}\n\n{describe(load)}")
    return 0 if all(work.holds for work in works) else 1


if __name__ == "__main__":
    sys.exit(main())
