"""Measures the time until a process that held memory of the card is gone and its memory free.

The gateway hears of a worker's end by a pidfd. The sentinel of ``multiprocessing`` comes earlier:
it is one of the process's files, and at its end the process's memory is held still.
"""

import multiprocessing
import os
import select
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from benchmarks.gpu.card_memory import CardMemory
from benchmarks.gpu.recorder import Recorder

_PATIENCE = 30.0
_MOST = 40 * 10**9  #: bytes that the process reserves on the card, if half of it is not less
_TINY = 64 * 10**6
_RESIDUE = 300 * 10**6  #: bytes that the card's use may stay above where it began
_EXPECTED = {"SIGKILL": "300 to 1500", "normal exit": "1000 to 2000"}


def measure(record: Recorder) -> None:
    """Record milliseconds from a SIGKILL, and from a normal exit, to each sign of the end."""
    memory = CardMemory(record.device)
    size = _TINY if record.tiny else min(_MOST, memory.total // 2)
    for name, end in (("SIGKILL", _kill), ("normal exit", _close_reader)):
        _measure(record, memory, size, name, end)


def _measure(
    record: Recorder,
    memory: CardMemory,
    size: int,
    name: str,
    end: Callable[[SpawnProcess, Connection], None],
) -> None:
    before = memory.used()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(theirs, record.device, size), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_PATIENCE):
            raise TimeoutError("the process did not reserve its memory")
        ours.recv()
        seen = _Signs(process)
        held = memory.used() - before
        began = time.perf_counter()
        end(process, ours)
        fallen = memory.wait(lambda used: used < before + _RESIDUE, _PATIENCE)
        times = seen.wait()
    except BaseException:
        process.kill()
        raise
    ours.close()
    note = f"{held / 1e9:.1f} GB on the card" if memory.on_card else "no card"
    for sign in ("sentinel", "pidfd", "waitpid"):
        if sign in times:
            value = 1000 * (times[sign] - began)
            record.figure(
                f"{name} until {sign}",
                value,
                "ms",
                expected=_EXPECTED[name] if memory.on_card and not record.tiny else "",
                note=note,
            )
    if not memory.on_card:
        record.figure(f"{name} until the card's memory is free", "only on a card")
    elif fallen is None:
        record.figure(f"{name} until the card's memory is free", f"not in {_PATIENCE:g} s")
        raise AssertionError(f"the memory did not come back after the {name}")
    else:
        record.figure(
            f"{name} until the card's memory is free",
            1000 * fallen,
            "ms",
            expected="before waitpid",
            note=f"to within {_RESIDUE / 1e9:g} GB",
        )


class _Signs:
    """Tells when each sign of a process's end came, as ``perf_counter`` tells; one thread for
    each."""

    def __init__(self, process: SpawnProcess) -> None:
        assert process.pid is not None
        self._times: dict[str, float] = {}
        pid = process.pid
        pidfd = self._pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        waits: dict[str, Callable[[], object]] = {
            "sentinel": lambda: select.select([process.sentinel], [], [], _PATIENCE),
            "waitpid": lambda: process.join(_PATIENCE),
        }
        if pidfd is not None:
            waits["pidfd"] = lambda: select.select([pidfd], [], [], _PATIENCE)
        self._threads = [
            threading.Thread(target=self._await, args=each, daemon=True) for each in waits.items()
        ]
        for thread in self._threads:
            thread.start()

    def _await(self, sign: str, wait: Callable[[], object]) -> None:
        wait()
        self._times[sign] = time.perf_counter()

    def wait(self) -> dict[str, float]:
        """Return the times by sign. Raises TimeoutError if the process does not end."""
        for thread in self._threads:
            thread.join(_PATIENCE)
        if any(thread.is_alive() for thread in self._threads):
            raise TimeoutError("the process did not end")
        if self._pidfd is not None:
            os.close(self._pidfd)
        return self._times


def _kill(process: SpawnProcess, _: Connection) -> None:
    process.kill()


def _close_reader(_: SpawnProcess, pipe: Connection) -> None:
    pipe.send("go")


def _hold(pipe: Connection, device: str, size: int) -> None:
    """Reserve memory, say so, and end when told to."""
    import torch

    held = torch.zeros(size, dtype=torch.uint8, device=device)
    if device == "cuda":
        torch.cuda.synchronize()
    pipe.send(held.numel())
    pipe.recv()
