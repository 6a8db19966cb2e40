"""Holds a job for as long as its caller waits, and no longer than its timeout."""

import asyncio
from typing import TYPE_CHECKING

from bitinglip.access.usage.meter import Held
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job

if TYPE_CHECKING:
    from bitinglip.scheduling.dispatch.dispatcher import Dispatcher

_LONG_TIMEOUT = 60.0  #: seconds; shorter ones have timers of their own


class OpenJob:
    """Holds a job from its admission until its caller leaves; see ``Dispatcher.open``.

    A generator in its place would cost as much as a check of a key.
    """

    __slots__ = ("_admitted", "_dispatcher", "_entry", "_held", "_job", "_slot", "_timer")

    def __init__(
        self, dispatcher: "Dispatcher", job: Job, *, admitted: bool, held: Held | None = None
    ) -> None:
        self._dispatcher = dispatcher
        self._job = job
        self._admitted = admitted
        self._held = held

    def __enter__(self) -> EventLog:
        dispatcher, seconds = self._dispatcher, self._job.timeout
        self._entry = entry = dispatcher.admit(self._job, admitted=self._admitted, held=self._held)
        self._timer: asyncio.TimerHandle | None = None
        if seconds >= _LONG_TIMEOUT:
            self._slot = dispatcher.deadlines.add(entry, seconds)
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, dispatcher.expire, entry)
        return entry.event_log

    def __exit__(self, *_: object) -> None:
        if self._timer is None:
            self._dispatcher.deadlines.discard(self._entry, self._slot)
        else:
            self._timer.cancel()
        self._dispatcher.leave(self._entry)
