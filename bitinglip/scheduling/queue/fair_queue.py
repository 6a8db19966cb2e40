"""The fair queue orders jobs by level, then by key in proportion to weight, then by arrival.

Start-time fair queueing: each key has a tag, the virtual time up to which it has been served; the
key with the lowest tag goes next, and its tag moves on by the cost of what it sent, divided by its
weight. A key that was idle starts at the present virtual time: it has neither credit nor
debt. Pure: the clock is the caller's.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class FairShare(msgspec.Struct, frozen=True):
    """A job belongs to a key, which has a level and a weight."""

    key: str
    level: int = 0  #: a higher level goes first, unless a lower one has waited for long
    weight: float = 1.0  #: its part of the machine, relative to others of the same level


@dataclass(slots=True)
class _KeyQueue(Generic[T]):
    """Holds the waiting items of one key at one level."""

    share: FairShare
    since: float  #: when it began to wait, or was last served
    entries: deque[tuple[T, float]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """Orders items. ``ageing``: seconds without service that raise a key by one level."""

    def __init__(self, ageing: float) -> None:
        self._ageing = ageing
        self._queues: dict[tuple[int, str], _KeyQueue[T]] = {}
        self._tags: dict[str, float] = {}
        self._virtual = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return (item for queue in self._queues.values() for item, _ in queue.entries)

    def heads(self) -> Iterator[T]:
        """Iterate over the first item of each key; one of them has waited longest."""
        return (queue.entries[0][0] for queue in self._queues.values())

    def counts(self) -> Counter[str]:
        """Count the waiting items of each key, at all levels."""
        found: Counter[str] = Counter()
        for queue in self._queues.values():
            found[queue.share.key] += len(queue.entries)
        return found

    def push(self, item: T, share: FairShare, cost: float, now: float) -> int:
        """Add an item; return roughly how many go before it if nothing else comes."""
        queue = self._queues.get((share.level, share.key))
        if queue is None:
            queue = self._queues[share.level, share.key] = _KeyQueue(share, now)
        queue.entries.append((item, cost))
        self._length += 1
        if len(self._queues) == 1:
            return self._length - 1
        mine = len(queue.entries)
        return sum(min(len(other.entries), mine) for other in self._queues.values()) - 1

    def pass_by(self, share: FairShare, cost: float) -> None:
        """Account for an item that goes at once because nothing waits, as push and pop would."""
        start = self._start(share.key)
        self._virtual = start
        self._tags[share.key] = start + cost / share.weight
        if len(self._tags) > 2 * len(self._queues) + 64:
            self._forget_served()

    def pop(self, now: float) -> T:
        """Take the item whose turn it is. Raises IndexError if there is none."""
        if not self._queues:
            raise IndexError("nothing waits")
        queue = self._next(now)
        item, cost = queue.entries.popleft()
        self._length -= 1
        queue.since = now
        key = queue.share.key
        start = self._start(key)
        self._virtual = start
        self._tags[key] = start + cost / queue.share.weight
        if not queue.entries:
            del self._queues[queue.share.level, key]
        if len(self._tags) > 2 * len(self._queues) + 64:
            self._forget_served()
        return item

    def charge(self, share: FairShare, cost: float) -> None:
        """Correct what a key was charged, once the real cost is known; may be negative."""
        if share.key in self._tags:
            self._tags[share.key] += cost / share.weight

    def remove(self, item: T) -> bool:
        """Remove an item; return False if it is not here."""
        for place, queue in self._queues.items():
            for entry in queue.entries:
                if entry[0] is item:
                    queue.entries.remove(entry)
                    self._length -= 1
                    if not queue.entries:
                        del self._queues[place]
                    return True
        return False

    def order(self, now: float) -> list[T]:
        """List all items in the order of service if nothing else comes."""
        ranked: list[tuple[int, float, int, T]] = []
        for queue in self._queues.values():
            tag = self._start(queue.share.key)
            for item, cost in queue.entries:
                ranked.append((-self._level(queue, now), tag, len(ranked), item))
                tag += cost / queue.share.weight
        ranked.sort(key=lambda entry: entry[:3])
        return [entry[3] for entry in ranked]

    def top_level(self, now: float) -> int:
        """Return the highest level that waits, ageing included; 0 if nothing does."""
        return max((self._level(queue, now) for queue in self._queues.values()), default=0)

    def _next(self, now: float) -> _KeyQueue[T]:
        if len(self._queues) == 1:
            return next(iter(self._queues.values()))
        return min(
            self._queues.values(),
            key=lambda queue: (-self._level(queue, now), self._start(queue.share.key)),
        )

    def _start(self, key: str) -> float:
        return max(self._virtual, self._tags.get(key, 0.0))

    def _level(self, queue: _KeyQueue[T], now: float) -> int:
        return queue.share.level + int((now - queue.since) / self._ageing)

    def _forget_served(self) -> None:
        """Drop tags of the past: such a key starts at the present virtual time anyway. Drop all
        once nothing waits."""
        if not self._queues:
            self._tags.clear()
            self._virtual = 0.0
        self._tags = {key: tag for key, tag in self._tags.items() if tag > self._virtual}
