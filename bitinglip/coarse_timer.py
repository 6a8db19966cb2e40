"""Calls back after a while, by one timer of the event loop for all that wait.

Nearly all timers of requests are cancelled before they ring, and one of the loop's own costs as
much as a check of a key. Those here ring up to two steps late, in a context that is no request's:
one request's would be kept, and its id would stand in the log beside another's failure.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Generic, TypeVar

T = TypeVar("T")
#: what ``add`` returns, and ``discard`` takes
Slot = int


class CoarseTimer(Generic[T]):
    """Holds items until their time has come; for one event loop at a time."""

    def __init__(self, ring: Callable[[T], None], *, step: float) -> None:
        """``ring`` is called with each item; ``step``: half of the seconds that it may be late."""
        self._ring = ring
        self._step = step
        self._slots: dict[Slot, dict[T, None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: T, seconds: float) -> Slot:
        """Ring for an item after so many seconds, unless it is discarded before."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another one, of a test; its predecessor runs no more
            self._loop, self._timer = loop, None
            self._slots.clear()
        slot = int((loop.time() + seconds) / self._step) + 1
        held = self._slots.get(slot)
        if held is None:
            held = self._slots[slot] = {}
            if self._timer is None:
                self._timer = loop.call_later(self._step, self._tick, context=Context())
        held[item] = None
        return slot

    def discard(self, item: T, slot: Slot) -> None:
        """Forget an item; does nothing if it has expired."""
        held = self._slots.get(slot)
        if held is not None:
            held.pop(item, None)

    def _tick(self) -> None:
        assert self._loop is not None
        now = int(self._loop.time() / self._step)
        for slot in [each for each in self._slots if each <= now]:
            for item in self._slots.pop(slot):
                try:
                    self._ring(item)
                except Exception as error:  # noqa: BLE001  as the loop does for its own timers
                    told = {"message": "a timer's callback failed", "exception": error}
                    self._loop.call_exception_handler(told)
        self._timer = None
        if self._slots:
            self._timer = self._loop.call_later(self._step, self._tick, context=Context())
