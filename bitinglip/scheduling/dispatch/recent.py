"""The event logs of ended jobs are kept for a while, bounded in number and in memory."""

from collections import deque
from collections.abc import Iterator

from bitinglip.scheduling.event_log import EventLog

MOST_BYTES = 64 * 2**20  #: of all event logs together


class _OfKey:
    """Holds the ids of one key's jobs, the oldest first, and what their event logs take."""

    __slots__ = ("bytes", "ids")

    def __init__(self) -> None:
        self.ids: deque[str] = deque()
        self.bytes = 0


class RecentJobs:
    """Keeps event logs of ended jobs. Where they are too many or too large, it drops the oldest of
    the key that holds the most, so that no key's jobs push out those of others."""

    def __init__(self, most: int, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: dict[str, tuple[EventLog, int]] = {}
        self._keys: dict[str, _OfKey] = {}
        self.bytes = 0

    def add(self, event_log: EventLog) -> None:
        size = event_log.close()
        job = event_log.job
        job_id, key_id = job.work.id, job.key_id
        if job_id in self._kept:  # a task that another server had meanwhile
            self._forget(job_id)
        of_key = self._keys.get(key_id)
        if of_key is None:
            of_key = self._keys[key_id] = _OfKey()
        self._kept[job_id] = event_log, size
        of_key.ids.append(job_id)
        of_key.bytes += size
        self.bytes += size
        while self.bytes > self._most_bytes:
            self._drop_oldest_of(max(self._keys, key=lambda each: self._keys[each].bytes))
        while len(self._kept) > self._most:
            if len(self._keys) > 1:
                key_id = max(self._keys, key=lambda each: len(self._keys[each].ids))
            self._drop_oldest_of(key_id)

    def get(self, job_id: str) -> EventLog | None:
        found = self._kept.get(job_id)
        return found[0] if found else None

    def __iter__(self) -> Iterator[EventLog]:
        """Iterate from the newest to the oldest."""
        return (event_log for event_log, _ in reversed(self._kept.values()))

    def _drop_oldest_of(self, key_id: str) -> None:
        self._forget(self._keys[key_id].ids[0])

    def _forget(self, job_id: str) -> None:
        event_log, size = self._kept.pop(job_id)
        key_id = event_log.job.key_id
        of_key = self._keys[key_id]
        of_key.ids.remove(job_id)  # the first one, unless it is there again
        self.bytes -= size
        of_key.bytes -= size
        if not of_key.ids:
            del self._keys[key_id]
