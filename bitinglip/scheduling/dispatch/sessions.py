"""Keeps the jobs of a session on one replica, whose caches hold what was said before. Pure."""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

MOST_SESSIONS = 10_000  #: of a model that are remembered; those used longest ago are forgotten

#: a key's id, and the client's name of a session
SessionId = tuple[str, str]


class Replica(Protocol):
    """A loaded copy of the model that sessions stay on."""

    @property
    def id(self) -> str: ...

    @property
    def slots(self) -> int: ...


T = TypeVar("T")
R = TypeVar("R", bound=Replica)


class Sessions(Generic[T]):
    """Remembers the replica of each session, and holds the jobs that wait for a busy one."""

    def __init__(self) -> None:
        self._replicas: OrderedDict[SessionId, str] = OrderedDict()
        self._waiting: dict[str, deque[T]] = {}  #: by the replica's id

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[T]:
        return (item for waiting in self._waiting.values() for item in waiting)

    def replica(self, session: SessionId, replicas: Sequence[R]) -> R | None:
        """Return the session's replica; None for a new session, and if its replica has gone."""
        own = self._replicas.get(session)
        return next((each for each in replicas if each.id == own), None) if own else None

    def bind(self, session: SessionId, replica: Replica) -> None:
        """Remember that a session is on this replica from now on."""
        self._replicas[session] = replica.id
        self._replicas.move_to_end(session)
        while len(self._replicas) > MOST_SESSIONS:
            self._replicas.popitem(last=False)

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
