"""Keeps the jobs of a session on one replica, whose caches hold what was said before. Pure."""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

MOST_SESSIONS = 10_000  #: of a model that are remembered; those used longest ago are forgotten

#: a key's id, and the client's name of a session
SessionId = tuple[str, str]


class Home(Protocol):
    """A replica that sessions stay on."""

    @property
    def id(self) -> str: ...

    @property
    def slots(self) -> int: ...


T = TypeVar("T")
H = TypeVar("H", bound=Home)


class Sessions(Generic[T]):
    """Remembers the replica of each session, and holds the jobs that wait for a busy one."""

    def __init__(self) -> None:
        self._homes: OrderedDict[SessionId, str] = OrderedDict()
        self._waiting: dict[str, deque[T]] = {}  #: by the replica's id

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[T]:
        return (item for waiting in self._waiting.values() for item in waiting)

    def home(self, session: SessionId, replicas: Sequence[H]) -> H | None:
        """Return the session's replica; None for a new session, and if its replica has gone."""
        home = self._homes.get(session)
        return next((each for each in replicas if each.id == home), None) if home else None

    def bind(self, session: SessionId, replica: Home) -> None:
        """Remember that a session is on this replica from now on."""
        self._homes[session] = replica.id
        self._homes.move_to_end(session)
        while len(self._homes) > MOST_SESSIONS:
            self._homes.popitem(last=False)

    def may_wait(self, replica: H) -> bool:
        """Return whether a job may wait for this replica, and go first there once it is free.

        As many may as it runs at once: more of them would keep it from all other jobs, whatever
        their turn, for as long as one key likes.
        """
        return len(self._waiting.get(replica.id, ())) < replica.slots

    def wait(self, item: T, replica: Home) -> None:
        """Let a job wait until its session's replica has a free slot."""
        self._waiting.setdefault(replica.id, deque()).append(item)

    def take(self, replica: Home) -> T | None:
        """Take the job that has waited longest for this replica."""
        waiting = self._waiting.get(replica.id)
        if not waiting:
            return None
        item = waiting.popleft()
        if not waiting:
            del self._waiting[replica.id]
        return item

    def homeless(self, replicas: Mapping[str, Home]) -> list[T]:
        """Take the jobs whose replica is not among these any more."""
        gone = [each for each in self._waiting if each not in replicas]
        return [item for each in gone for item in self._waiting.pop(each)]

    def remove(self, item: T) -> bool:
        """Remove a job that waits; return whether it did."""
        for home, waiting in self._waiting.items():
            if item in waiting:
                waiting.remove(item)
                if not waiting:
                    del self._waiting[home]
                return True
        return False
