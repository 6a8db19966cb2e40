"""Who goes next: by level, inside a level by key in proportion to weight, inside a key by arrival.

Start-time fair queueing: each key has a tag, the virtual time up to which it has been served; the
key with the lowest tag goes next, and its tag moves on by the work of what it sent, divided by its
weight. A key that was idle starts at the present virtual time: it has saved up nothing and owes
nothing. Pure: the clock is the caller's.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FairShare:
    """Whose work it is and what that entitles it to."""

    key: str
    level: int = 0  #: a higher level goes first, unless a lower one has waited for long
    weight: float = 1.0  #: its part of the machine, relative to others of the same level


@dataclass(slots=True)
class _KeyQueue(Generic[T]):
    """What one key has waiting at one level."""

    share: FairShare
    since: float  #: when it began to wait, or was last served
    entries: deque[tuple[T, float]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """``ageing``: seconds without service that raise a line by one level, so that none starves."""

    def __init__(self, ageing: float) -> None:
        self._ageing = ageing
        self._lines: dict[tuple[int, str], _KeyQueue[T]] = {}
        self._tags: dict[str, float] = {}
        self._virtual = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return (item for line in self._lines.values() for item, _ in line.entries)

    def heads(self) -> Iterator[T]:
        """The first item of each line: nobody waits longer than one of these."""
        return (line.entries[0][0] for line in self._lines.values())

    def counts(self) -> Counter[str]:
        """How many items of each key wait, at all levels."""
        found: Counter[str] = Counter()
        for line in self._lines.values():
            found[line.share.key] += len(line.entries)
        return found

    def push(self, item: T, share: FairShare, work: float, now: float) -> int:
        """Add an item; how many will go before it, roughly, if nothing else comes."""
        line = self._lines.get((share.level, share.key))
        if line is None:
            line = self._lines[share.level, share.key] = _KeyQueue(share, now)
        line.entries.append((item, work))
        self._length += 1
        if len(self._lines) == 1:
            return self._length - 1
        mine = len(line.entries)
        return sum(min(len(other.entries), mine) for other in self._lines.values()) - 1

    def pop(self, now: float) -> T:
        """Take the item whose turn it is. Raises IndexError if there is none."""
        if not self._lines:
            raise IndexError("nothing waits")
        line = self._next(now)
        item, work = line.entries.popleft()
        self._length -= 1
        line.since = now
        key = line.share.key
        start = self._start(key)
        self._virtual = start
        self._tags[key] = start + work / line.share.weight
        if not line.entries:
            del self._lines[line.share.level, key]
        if len(self._tags) > 2 * len(self._lines) + 64:
            self._forget_served()
        return item

    def charge(self, share: FairShare, work: float) -> None:
        """Correct what a key was charged, once its real work is known; may be negative."""
        if share.key in self._tags:
            self._tags[share.key] += work / share.weight

    def remove(self, item: T) -> bool:
        """Take an item out wherever it stands; False if it is not here."""
        for place, line in self._lines.items():
            for entry in line.entries:
                if entry[0] is item:
                    line.entries.remove(entry)
                    self._length -= 1
                    if not line.entries:
                        del self._lines[place]
                    return True
        return False

    def order(self, now: float) -> list[T]:
        """All items as they would go if nothing else came."""
        ranked: list[tuple[int, float, int, T]] = []
        for line in self._lines.values():
            tag = self._start(line.share.key)
            for item, work in line.entries:
                ranked.append((-self._level(line, now), tag, len(ranked), item))
                tag += work / line.share.weight
        ranked.sort(key=lambda entry: entry[:3])
        return [entry[3] for entry in ranked]

    def top_level(self, now: float) -> int:
        """The highest level that waits, ageing included; 0 if nothing does."""
        return max((self._level(line, now) for line in self._lines.values()), default=0)

    def _next(self, now: float) -> _KeyQueue[T]:
        if len(self._lines) == 1:
            return next(iter(self._lines.values()))
        return min(
            self._lines.values(),
            key=lambda line: (-self._level(line, now), self._start(line.share.key)),
        )

    def _start(self, key: str) -> float:
        return max(self._virtual, self._tags.get(key, 0.0))

    def _level(self, line: _KeyQueue[T], now: float) -> int:
        return line.share.level + int((now - line.since) / self._ageing)

    def _forget_served(self) -> None:
        """Tags of the past say nothing more: such a key starts at the present anyway. Nor do any
        once nothing waits and there are many."""
        if not self._lines:
            self._tags.clear()
            self._virtual = 0.0
        self._tags = {key: tag for key, tag in self._tags.items() if tag > self._virtual}
