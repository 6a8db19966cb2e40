"""The event logs of ended jobs are kept for a while, bounded in number and in memory."""

from collections import Counter, OrderedDict
from collections.abc import Iterator

from bitinglip.scheduling.event_log import EventLog

MOST_BYTES = 64 * 2**20  #: of all event logs together


class RecentJobs:
    """It keeps event logs of ended jobs. Where they are too many or too large, it drops the oldest
    of the key that holds the most, so that no key's jobs push out those of others."""

    def __init__(self, most: int, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, tuple[EventLog, int]] = OrderedDict()
        self._jobs: Counter[str] = Counter()  #: by key
        self._bytes: Counter[str] = Counter()  #: by key
        self.bytes = 0

    def add(self, event_log: EventLog) -> None:
        size = event_log.close()
        key = event_log.job.key_id
        self._kept[event_log.job.id] = event_log, size
        self._jobs[key] += 1
        self._bytes[key] += size
        self.bytes += size
        while self.bytes > self._most_bytes:
            self._drop_oldest_of(max(self._bytes, key=self._bytes.__getitem__))
        while len(self._kept) > self._most:
            many = key if len(self._jobs) == 1 else max(self._jobs, key=self._jobs.__getitem__)
            self._drop_oldest_of(many)

    def get(self, job_id: str) -> EventLog | None:
        found = self._kept.get(job_id)
        return found[0] if found else None

    def __iter__(self) -> Iterator[EventLog]:
        """Iterate from the newest to the oldest."""
        return (event_log for event_log, _ in reversed(self._kept.values()))

    def _drop_oldest_of(self, key: str) -> None:
        if len(self._jobs) == 1:
            job_id = next(iter(self._kept))
        else:
            job_id = next(name for name, (each, _) in self._kept.items() if each.job.key_id == key)
        _, size = self._kept.pop(job_id)
        self.bytes -= size
        self._bytes[key] -= size
        self._jobs[key] -= 1
        if not self._jobs[key]:
            del self._jobs[key], self._bytes[key]
