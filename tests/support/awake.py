"""Measures time in which this process could run: what the machine stood still is left out."""

import threading
import time
from typing import Self

_TICK_SECONDS = 0.02
_MOST_SECONDS = 0.25  #: what a tick counts at most, unless the process computed for longer


class AwakeClock:
    """Stops while the machine does, so that no stall of it fails a test.

    A process that is blocked by itself is not stalled: its waits in system calls are counted, as
    other threads run meanwhile, and computing that lets no thread run is counted as such.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last = (0.0, 0.0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._last = (time.monotonic(), time.process_time())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def __call__(self) -> float:
        """Return the seconds since the clock was started, without those of stalls."""
        return self._seconds

    def _run(self) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            now = (time.monotonic(), time.process_time())
            passed, computed = now[0] - self._last[0], now[1] - self._last[1]
            self._seconds += min(passed, max(_MOST_SECONDS, computed))
            self._last = now


class Waits:
    """Notes how long each of many short waits took."""

    def __init__(self, clock: AwakeClock) -> None:
        self._clock = clock
        self._waits: list[float] = []
        self._began = clock()

    def begin(self) -> None:
        self._began = self._clock()

    def end(self) -> None:
        self._waits.append(self._clock() - self._began)

    def __len__(self) -> int:
        return len(self._waits)

    def share_of(self, seconds: float) -> float:
        """Return the share of all waiting that went to waits longer than so many seconds."""
        whole = sum(self._waits)
        return sum(each for each in self._waits if each > seconds) / whole if whole else 0.0
