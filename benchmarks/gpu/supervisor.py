"""Runs one part of the check in a process of its own, and outlives whatever happens to it."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.gpu.parts import Part
from benchmarks.gpu.preloaded import ForkedPart
from benchmarks.gpu.recorder import Figure, read_figures
from workers.environment import worker_environment

RUNNING = "running"
_TAIL_LINES = 30
_LOOK_SECONDS = 0.5
_DEATH_SECONDS = 10.0  #: for a killed process to be gone
_LOG_BYTES = 200_000  #: of each part, from its end
#: Words in a traceback that mean that memory ran out, the card's or the machine's.
_MEMORY_WORDS = ("out of memory", "OutOfMemoryError", "_ALLOC_FAILED", "can't allocate memory")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tells how a part ended. ``state``: passed, failed, out of memory, timed out, not begun or
    running."""

    part: str
    question: str
    state: str
    seconds: float
    figures: list[Figure]
    error: str = ""  #: the end of its output, where it did not pass


def run_part(
    part: Part,
    device: str,
    shape: str,
    folder: Path,
    limit: float,
    logs: Path,
    *,
    told: Callable[[Outcome], object],
    preload: bool = False,
) -> Outcome:
    """Run a part for ``limit`` seconds at most; its output goes to ``<logs>/<part>.log``.

    ``told`` gets what it has measured so far, whenever that is more. With ``preload`` it is a fork
    of a process that has imported the libraries.
    """
    figures, log = folder / f"{part.name}.jsonl", logs / f"{part.name}.log"
    figures.unlink(missing_ok=True)
    began = time.monotonic()
    arguments = [part.function, device, shape, str(folder), str(figures), str(began + limit)]
    log.write_bytes(b"")
    size = 0

    def look() -> None:
        nonlocal size
        if figures.exists() and figures.stat().st_size != size:
            size, seconds = figures.stat().st_size, time.monotonic() - began
            told(Outcome(part.name, part.question, RUNNING, seconds, read_figures(figures)))

    process = ForkedPart(arguments, log) if preload else _start(arguments, log)
    code = _wait(process, limit, look)
    seconds = time.monotonic() - began
    tail = _tail(log)
    state = "passed" if code == 0 else "timed out" if code is None else _failure(code, tail)
    error = "" if state == "passed" else tail
    return Outcome(part.name, part.question, state, seconds, read_figures(figures), error)


def _start(arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.child", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )


def _environment() -> dict[str, str]:
    """Return a worker's environment, for engines that run in a part's process, and our own
    variables."""
    worker = worker_environment(dict(os.environ), platform.release())
    return {**worker, **os.environ, "PYTHONUNBUFFERED": "1"}


def not_begun(part: Part) -> Outcome:
    return Outcome(part.name, part.question, "not begun", 0.0, [], "No time was left for it.")


def end_of_log(logs: Path, part: str) -> bytes:
    """Return the last part of a part's log."""
    path = logs / f"{part}.log"
    return path.read_bytes()[-_LOG_BYTES:] if path.exists() else b""


def _wait(
    process: "subprocess.Popen[bytes] | ForkedPart", limit: float, look: Callable[[], None]
) -> int | None:
    """Return the exit code, or None for a process that took longer. None of its descendants stays.

    ``look`` is called every now and then.
    They are noted while it runs: a server leads a session of its own, and nothing tells whose
    it was once the process that started it has ended.
    """
    deadline = time.monotonic() + limit
    descendants: set[psutil.Process] = set()
    code = None
    while code is None and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            descendants.update(psutil.Process(process.pid).children(recursive=True))
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        look()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in descendants:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    with suppress(subprocess.TimeoutExpired):  # a process that is stuck in the driver stays
        process.wait(_DEATH_SECONDS)
    deadline = time.monotonic() + _DEATH_SECONDS
    while any(map(_runs, descendants)) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS / 10)
    return code


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _failure(code: int, tail: str) -> str:
    ran_out = code == -signal.SIGKILL or any(word in tail for word in _MEMORY_WORDS)
    return "out of memory" if ran_out else "failed"


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
