"""Weights of models that made room stay in the system's page cache, so that they come back quickly.

Files are read into it, and given up again when the budget is spent. Nothing is locked: what the
kernel needs for programs it takes, and the load is as slow as from disk.
"""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import psutil

_PIECE = 8 * 1024 * 1024
_SHARE = 4  #: a quarter of the machine's memory, unless it is set


def default_budget() -> int:
    return int(psutil.virtual_memory().total // _SHARE)


class PageCache:
    """Keeps weight files in memory up to a budget; the least recently kept models go first.

    Its methods block, so they belong into a thread; they may be called from several at once.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._held: OrderedDict[str, dict[Path, int]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, name: str, folder: Path, *, read: bool) -> bool:
        """Have a model's weight files in memory; False if they are more than the budget.

        Without ``read`` they are there already, because the model was just loaded.
        """
        files = {path: _size(path) for path in sorted(folder.rglob("*.safetensors"))}
        size = sum(files.values())
        if not 0 < size <= self._budget:
            return False
        left: list[Path] = []
        with self._lock:
            self._held.pop(name, None)
            while sum(self._sizes().values()) + size > self._budget:
                left += self._held.popitem(last=False)[1]
            self._held[name] = files
        for path in left:
            _on_file(path, _give_up)
        for path in files if read else ():
            _on_file(path, _read_through)
        return True

    @property
    def held(self) -> dict[str, int]:
        """Bytes by model, the least recently kept first."""
        with self._lock:
            return self._sizes()

    def _sizes(self) -> dict[str, int]:
        return {name: sum(files.values()) for name, files in self._held.items()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _on_file(path: Path, act: Callable[[int], None]) -> None:
    """A file that is gone or damaged needs no place in memory."""
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        act(file.fileno())


def _read_through(fd: int) -> None:
    """By reading, not by touching a mapping: a file that is cut off meanwhile just ends."""
    piece = bytearray(_PIECE)
    while os.readv(fd, [piece]):
        pass


def _give_up(fd: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
