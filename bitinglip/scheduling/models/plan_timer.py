"""When to plan next: soon after something has changed, or when time alone will have done it."""

import asyncio
import contextvars
from collections.abc import Callable

_BETWEEN = 0.01  #: seconds between two plans: each costs about as much as some requests
_LATE = 0.001  #: so that what was to be true by then is


class PlanTimer:
    """Calls ``work`` on the event loop: once for all that asked for it meanwhile."""

    def __init__(self, work: Callable[[], None], clock: Callable[[], float]) -> None:
        self._work = work
        self._clock = clock
        self._asked = False
        self._last = -_BETWEEN
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def soon(self) -> None:
        """At the end of this turn of the loop, or a moment after the last time."""
        if self._asked or self._closed:
            return
        self._asked = True
        wait = max(0.0, self._last + _BETWEEN - self._clock())
        # In a context of its own: what comes of it is not the affair of one request.
        context = contextvars.Context()
        asyncio.get_running_loop().call_later(wait, self._run, context=context)

    def at(self, moment: float) -> None:
        """No later than then; of several moments the next one counts, the others come after it."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + max(0.0, moment - self._clock()) + _LATE
        if self._timer is not None and loop.time() < self._timer.when() <= due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(due, self.soon)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        self._asked = False
        if not self._closed:
            self._last = self._clock()
            self._work()
