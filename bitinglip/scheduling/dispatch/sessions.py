"""Keeps the jobs of a session on one replica, whose caches hold what was said before. Pure."""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

MOST_SESSIONS = 10_000  #: of a model that are remembered; the keys used longest ago lose theirs
MOST_OF_KEY = 1_000  #: of one key; those used longest ago are forgotten

#: a key's id, and the client's name of a session
SessionId = tuple[str, str]


class Replica(Protocol):
    """Is a loaded copy of the model that sessions stay on."""

    @property
    def id(self) -> str: ...

    @property
    def slots(self) -> int: ...


T = TypeVar("T")
R = TypeVar("R", bound=Replica)


class Sessions(Generic[T]):
    """Remembers the replica of each session, and holds the jobs that wait for a busy one."""

    def __init__(self) -> None:
        #: by key and session, those used last at the end
        self._replicas: OrderedDict[str, OrderedDict[str, str]] = OrderedDict()
        self._count = 0  #: of remembered sessions
        self._waiting: dict[str, deque[T]] = {}  #: by the replica's id

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values())) if self._waiting else 0

    def __iter__(self) -> Iterator[T]:
        return (item for waiting in self._waiting.values() for item in waiting)

    def replica(self, session: SessionId, replicas: Sequence[R]) -> R | None:
        """Return the session's replica; None for a new session, and if its replica has gone."""
        key, name = session
        of_key = self._replicas.get(key)
        own = None if of_key is None else of_key.get(name)
        return next((each for each in replicas if each.id == own), None) if own else None

    def bind(self, session: SessionId, replica: Replica) -> None:
        """Remember that a session is on this replica from now on."""
        key, name = session
        of_key = self._replicas.setdefault(key, OrderedDict())
        self._replicas.move_to_end(key)
        self._count += name not in of_key
        of_key[name] = replica.id
        of_key.move_to_end(name)
        if len(of_key) > MOST_OF_KEY:
            self._forget_one(key)
        if self._count > MOST_SESSIONS:
            self._forget_one(next(iter(self._replicas)))

    def _forget_one(self, key: str) -> None:
        """Forget the session of a key that was used longest ago."""
        self._replicas[key].popitem(last=False)
        self._count -= 1
        if not self._replicas[key]:
            del self._replicas[key]

    def may_wait(self, replica: Replica) -> bool:
        """Return whether a job may wait for this replica, and go first there once it is free.

        As many may as it runs at once: more of them would keep it from all other jobs, whatever
        their turn, for as long as one key likes.
        """
        return len(self._waiting.get(replica.id, ())) < replica.slots

    def wait(self, item: T, replica: Replica) -> None:
        """Let a job wait until its session's replica has a free slot."""
        self._waiting.setdefault(replica.id, deque()).append(item)

    def take(self, replica: Replica) -> T | None:
        """Take the job that has waited longest for this replica."""
        waiting = self._waiting.get(replica.id)
        if not waiting:
            return None
        item = waiting.popleft()
        if not waiting:
            del self._waiting[replica.id]
        return item

    def orphaned(self, replicas: Mapping[str, Replica]) -> list[T]:
        """Take the jobs whose replica is not among these any more."""
        gone = [each for each in self._waiting if each not in replicas]
        return [item for each in gone for item in self._waiting.pop(each)]

    def remove(self, item: T) -> bool:
        """Remove a job that waits; return whether it did."""
        for replica_id, waiting in self._waiting.items():
            if item in waiting:
                waiting.remove(item)
                if not waiting:
                    del self._waiting[replica_id]
                return True
        return False
