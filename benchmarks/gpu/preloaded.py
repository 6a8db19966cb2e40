"""Runs parts as forks of one process that has imported the libraries, for rehearsals on a CPU.

Each import of torch and its kin takes 5 s and more, which is most of a rehearsal's time. On a card
each part starts from nothing, as a worker does: a fork of a process with a CUDA context is none.
"""

import multiprocessing
import os
import subprocess
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from benchmarks.gpu import child


class ForkedPart:
    """Shows a part, forked from the preloaded process, as :class:`subprocess.Popen` would."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.gpu.preload_all"])
        self._process: ForkServerProcess = context.Process(target=_run, args=(arguments, log))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, timeout: float) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired while it runs."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode


def _run(arguments: list[str], log: Path) -> None:
    os.setsid()
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(fd, stream)
    child.run(arguments)
