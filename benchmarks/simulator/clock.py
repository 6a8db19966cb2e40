"""Runs an event loop whose time jumps to the next timer instead of waiting for it."""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time begins at 0 and passes only while all tasks wait. For code that waits for nothing
    outside the loop: a thread or a socket would find hours gone by."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(
        self, _executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Call the function at once: a thread would not keep to this loop's time."""
        done: asyncio.Future[T] = self.create_future()
        done.set_result(func(*args))
        return done


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
