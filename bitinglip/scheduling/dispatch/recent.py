"""The event logs of ended jobs are kept for a while, bounded in number and in memory."""

from collections import OrderedDict
from collections.abc import Iterator

from bitinglip.scheduling.event_log import EventLog

MOST_EVENTS = 100_000  #: over all event logs: some tens of megabytes at worst


class RecentJobs:
    """Keeps event logs of ended jobs, and drops the oldest first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[str, EventLog] = OrderedDict()
        self._events = 0

    def add(self, event_log: EventLog) -> None:
        self._kept[event_log.job.id] = event_log
        self._events += event_log.held
        while len(self._kept) > self._most or self._events > MOST_EVENTS:
            _, oldest = self._kept.popitem(last=False)
            self._events -= oldest.held

    def get(self, job_id: str) -> EventLog | None:
        return self._kept.get(job_id)

    def __iter__(self) -> Iterator[EventLog]:
        """Iterate from the newest to the oldest."""
        return reversed(self._kept.values())
