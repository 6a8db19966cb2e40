"""Reports the end of a child process as soon as it can be waited for, and its state before that.

By a pidfd where there is one, else by asking now and then. No file of the child's will do as a
sign: it can close them and live on, or leave them to a child of its own; and the kernel closes
them before it frees a card's memory.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

_PROC = Path("/proc")
_ASK_SECONDS = 0.05


class ExitWatch:
    """Calls back once, on the event loop."""

    def __init__(self, pid: int, on_exit: Callable[[], None]) -> None:
        self._pid = pid
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._pidfd = _pidfd(pid)
        if self._pidfd is None:
            self._ask()
        else:
            self._loop.add_reader(self._pidfd, self._ended)

    def close(self) -> None:
        """Stop calling back; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _ask(self) -> None:
        if has_ended(self._pid):
            self._timer = self._loop.call_later(0, self._ended)
        else:
            self._timer = self._loop.call_later(_ASK_SECONDS, self._ask)

    def _ended(self) -> None:
        self.close()
        self._on_exit()


def _pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable at the end of a process; None where the system has
    none, or has no descriptor left."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def has_ended(pid: int) -> bool:
    """True once a child can be waited for; it is left to be waited for."""
    if sys.platform == "darwin":  # its waitid is not there before Python 3.13
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def bytes_read(pid: int, proc: Path = _PROC) -> int | None:
    """Return the bytes that a process has read so far, by calls or by pages of mapped files.

    None where the kernel does not tell.
    """
    try:
        lines = (proc / str(pid) / "io").read_text().splitlines()
    except OSError:
        return None
    counts = dict(line.split(": ", 1) for line in lines if ": " in line)
    try:
        return int(counts["rchar"]) + int(counts["read_bytes"])
    except (KeyError, ValueError):
        return None


def is_stopped(pid: int, proc: Path = _PROC) -> bool:
    """Return True if a process was stopped by a signal and does not run until it gets another.

    A debugger's stops are none of these. False where the kernel does not tell.
    """
    try:
        stat = (proc / str(pid) / "stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] == [b"T"]  # its name may hold anything
