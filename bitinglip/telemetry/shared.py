"""Makes a value for many watchers, at most once an interval and never without them."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_EARLY = 0.01  #: seconds; a timer may fire that much before its time


class Shared(Generic[T]):
    """Makes a value on demand if the last one is older than ``interval``.

    Watchers that sleep for ``seconds_left`` wake together: the first makes the value for all.
    """

    def __init__(self, interval: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._value: T | None = None
        self._due = 0.0

    def get(self, make: Callable[[], T]) -> T:
        """Return the present value; ``make`` is called where it is too old."""
        now = self._clock()
        if self._value is None or now >= self._due - _EARLY:
            self._value = make()
            self._due = now + self._interval
        return self._value

    @property
    def seconds_left(self) -> float:
        """Return the seconds until the next value is due."""
        return max(0.0, self._due - self._clock())
