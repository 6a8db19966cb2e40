"""Limits the wait for calls into the driver, which may hang in the kernel for ever."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Silent(Exception):
    """A call has not come back in time."""


class DeadlineThread:
    """Makes one call at a time, in a thread that is not waited for at the end of the process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._out: Future[Any] | None = None
        self._started = False

    @property
    def hangs(self) -> bool:
        """True while a call is out that has not come back in time."""
        return self._out is not None and not self._out.done()

    def ask(self, call: Callable[[], T], seconds: float) -> T:
        """Return what the call returns, or raise what it raises.

        Raises Silent if it has not come back after so many seconds, and at once while an earlier
        call is out. May be used by one thread at a time.
        """
        if self.hangs:
            raise Silent
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        future: Future[T] = Future()
        self._out = future
        self._calls.put((call, future))
        try:
            return future.result(seconds)
        except TimeoutError:
            if future.done():  # the call itself raised it
                raise
            raise Silent from None

    def _run(self) -> None:
        while True:
            call, future = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  it belongs to the thread that asked
                future.set_exception(error)
