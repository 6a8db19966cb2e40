"""The balancer chooses the replica for a job, among those with free slots. Pure."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

from bitinglip.settings import Balancing

#: a sticky job leaves its replica when that has this many times the cost of the mean
_BOUND = 1.25


class Candidate(Protocol):
    """Is a replica with a free slot."""

    @property
    def id(self) -> str: ...
    @property
    def cost(self) -> float:
        """Return the cost of the jobs that were sent to it and have not ended."""
        ...

    @property
    def health(self) -> float:
        """Return its speed in cost per second."""
        ...


class Balancer:
    """Chooses among the replicas of one model."""

    def __init__(self, policy: Balancing = "least_work") -> None:
        self._policy = policy
        self._turns: dict[str, int] = {}
        self._turn = 0

    def choose(
        self,
        candidates: Sequence[Candidate],
        affinity: Callable[[], bytes],
        mean_cost: float,
    ) -> int:
        """Return the index of the replica that gets a job.

        ``affinity``: equal for similar jobs (a session, a prompt's beginning); ``mean_cost``: over
        all replicas, those without free slots included.
        """
        if len(candidates) == 1:
            return 0
        match self._policy:
            case "round_robin":
                return self._by_turn(candidates)
            case "weighted":
                return _least(candidates, lambda c: (c.cost + 1) / max(c.health, 0.01))
            case "sticky":
                home = _home(candidates, affinity())
                if candidates[home].cost <= _BOUND * mean_cost:
                    return home
            case "least_work":
                pass
        return _least(candidates, lambda c: c.cost)

    def _by_turn(self, candidates: Sequence[Candidate]) -> int:
        chosen = _least(candidates, lambda c: self._turns.get(c.id, 0))
        self._turn += 1
        self._turns[candidates[chosen].id] = self._turn
        return chosen


def _least(candidates: Sequence[Candidate], cost: Callable[[Candidate], float]) -> int:
    return min(range(len(candidates)), key=lambda index: cost(candidates[index]))


def _home(candidates: Sequence[Candidate], affinity: bytes) -> int:
    """Return the same replica for the same affinity while others come and go (rendezvous hash)."""

    def draw(index: int) -> bytes:
        return hashlib.blake2b(candidates[index].id.encode() + affinity, digest_size=8).digest()

    return max(range(len(candidates)), key=draw)
