"""Gives memory back to the system that the C library keeps after it was freed.

Workers allocate and free much on several threads, and glibc keeps what was freed in the arena of
its thread: over days a worker's RAM grows although nothing leaks.
"""

import ctypes
import time
from collections.abc import Callable

_IDLE_SECONDS = 60.0  #: between two trims of a worker that has nothing to do
_BUSY_SECONDS = 600.0  #: likewise, of one that always has: a trim takes it some milliseconds


class HeapTrim:
    """Trims the heap of a process that has worked since the last time, when it is due."""

    def __init__(
        self,
        trim: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trim = trim or _find_trim()
        self._clock = clock
        self._trimmed_at = clock()
        self._has_worked = False

    def tick(self, *, worked: bool, idle: bool) -> None:
        """Trim if it is due. ``worked``: since the last look; ``idle``: there is no more to do."""
        self._has_worked = self._has_worked or worked
        if not self._has_worked:
            return
        passed = self._clock() - self._trimmed_at
        if passed < (_IDLE_SECONDS if idle else _BUSY_SECONDS):
            return
        self._trim()
        self._trimmed_at = self._clock()
        self._has_worked = False


def _find_trim() -> Callable[[], None]:
    """Return glibc's function; other C libraries have none, and need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return (lambda: None) if trim is None else (lambda: trim(0))
