"""Stores cached answers in bounds: by age, by bytes in all, and by bytes of each key. Pure."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_OVERHEAD = 500  #: bytes of an entry's own objects


@dataclass(frozen=True, slots=True)
class Answer:
    """Holds the encoded events of a job that succeeded, and the bytes of the files that it made."""

    output: bytes  #: all but the final event
    final: bytes
    files: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        return _OVERHEAD + len(self.output) + len(self.final) + sum(map(len, self.files))


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: Answer
    owner: str
    model: str
    stored: float


class Entries:
    """Holds answers for ``seconds``; ``owner`` is the id of the API key whose request filled one.

    Where all are too large together, the key that holds the most loses what it has not used for
    longest, so that no key's answers push out those of others.
    """

    def __init__(
        self, most: int, most_of_owner: int, seconds: float, clock: Callable[[], float]
    ) -> None:
        self._most = most
        self._most_of_owner = min(most, most_of_owner)
        self._seconds = seconds
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  #: the oldest first
        self._used: dict[str, OrderedDict[bytes, None]] = {}  #: by owner, the last used at the end
        self._bytes: dict[str, int] = {}  #: by owner
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, max_age: float | None = None) -> Answer | None:
        """Return an answer that is at most ``max_age`` seconds old; None if there is none."""
        self.expire()
        entry = self._entries.get(key)
        if entry is None or (max_age is not None and self._clock() - entry.stored > max_age):
            return None
        self._used[entry.owner].move_to_end(key)
        return entry.answer

    def put(self, key: bytes, owner: str, model: str, answer: Answer) -> None:
        """Keep an answer; one that is larger than a key may hold is not kept."""
        self.expire()
        self._remove(key)
        if answer.size > self._most_of_owner:
            return
        while self._bytes.get(owner, 0) + answer.size > self._most_of_owner:
            self._evict_of(owner)
        while self.bytes + answer.size > self._most:
            self._evict_of(max(self._bytes, key=self._bytes.__getitem__))
        self._entries[key] = _Entry(answer, owner, model, self._clock())
        self._used.setdefault(owner, OrderedDict())[key] = None
        self._bytes[owner] = self._bytes.get(owner, 0) + answer.size
        self.bytes += answer.size

    def expire(self) -> None:
        """Remove what is too old."""
        oldest = self._clock() - self._seconds
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if entry.stored > oldest:
                return
            self._remove(key)

    def clear(self, chosen: Callable[[str], bool] = lambda _model: True) -> None:
        """Remove the answers of the models that are chosen."""
        for key in [key for key, entry in self._entries.items() if chosen(entry.model)]:
            self._remove(key)

    def _evict_of(self, owner: str) -> None:
        self._remove(next(iter(self._used[owner])))
        self.evicted += 1

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        owner, size = entry.owner, entry.answer.size
        self.bytes -= size
        self._bytes[owner] -= size
        del self._used[owner][key]
        if not self._used[owner]:
            del self._used[owner], self._bytes[owner]
