"""The plan timer starts the next plan: soon after a change, or when time changes the answer."""

import asyncio
import contextvars
from collections.abc import Callable

_BETWEEN = 0.01  #: seconds between two plans: each costs about as much as some requests
_LATE = 0.001  #: added, so that the moment has passed when the plan is made


class PlanTimer:
    """Calls ``work`` on the event loop, once for all requests in between."""

    def __init__(self, work: Callable[[], None], clock: Callable[[], float]) -> None:
        self._work = work
        self._clock = clock
        self._asked = False
        self._last = -_BETWEEN
        self._timer: asyncio.Handle | None = None
        self._due = (
            0.0  #: by the event loop's clock; uvloop's handle of a moment that is here has none
        )
        self._closed = False

    def soon(self) -> None:
        """Plan at the end of this turn of the event loop, or shortly after the last plan."""
        if self._asked or self._closed:
            return
        self._asked = True
        wait = max(0.0, self._last + _BETWEEN - self._clock())
        # In an empty context: a plan belongs to no request.
        context = contextvars.Context()
        asyncio.get_running_loop().call_later(wait, self._run, context=context)

    def at(self, moment: float) -> None:
        """Plan no later than at this moment; of several moments the next one counts."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + max(0.0, moment - self._clock()) + _LATE
        if self._timer is not None and loop.time() < self._due <= due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = due, loop.call_at(due, self.soon)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        self._asked = False
        if not self._closed:
            self._last = self._clock()
            self._work()
