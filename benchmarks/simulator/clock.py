"""Provides an event loop with simulated time: it jumps to the next timer instead of waiting for
it."""

import asyncio
import selectors


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time begins at 0 and passes only while all code waits. For code that waits for nothing
    outside the loop: a thread or a socket would find hours gone by."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class _Jumping(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready at once; else move the time on by what would have been waited."""
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("all tasks wait and no timer is set: nothing will ever happen")
            self.now += max(0.0, timeout)
        return ready
