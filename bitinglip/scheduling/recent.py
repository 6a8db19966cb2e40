"""The last jobs that ended, for those who ask late: bounded by number and by what they hold."""

from collections import OrderedDict
from collections.abc import Iterator

from bitinglip.scheduling.inbox import Inbox

MOST_EVENTS = 100_000  #: over all inboxes: some tens of megabytes at worst


class Recent:
    """Keeps inboxes of ended jobs; the oldest go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[str, Inbox] = OrderedDict()
        self._events = 0

    def add(self, inbox: Inbox) -> None:
        self._kept[inbox.job.id] = inbox
        self._events += inbox.held
        while len(self._kept) > self._most or self._events > MOST_EVENTS:
            _, oldest = self._kept.popitem(last=False)
            self._events -= oldest.held

    def get(self, job_id: str) -> Inbox | None:
        return self._kept.get(job_id)

    def __iter__(self) -> Iterator[Inbox]:
        """Newest first."""
        return reversed(self._kept.values())
