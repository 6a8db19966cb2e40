"""Which replica of a model gets a job. Pure; only replicas that have room are asked about."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

from bitinglip.settings import Balancing

#: a sticky job leaves its replica when that has this much more work than the mean
_BOUND = 1.25


class Candidate(Protocol):
    """What is known of a replica with room for another job."""

    @property
    def id(self) -> str: ...
    @property
    def work(self) -> float:
        """Work that was sent to it and has not ended, in units of the jobs."""
        ...

    @property
    def health(self) -> float:
        """Its speed: how much of a job's work it does in a second."""
        ...


class Balancer:
    """One model's choice of replicas."""

    def __init__(self, policy: Balancing = "least_work") -> None:
        self._policy = policy
        self._turns: dict[str, int] = {}
        self._turn = 0

    def choose(
        self,
        candidates: Sequence[Candidate],
        affinity: Callable[[], bytes],
        mean_work: float,
    ) -> int:
        """The index of the replica that gets a job.

        ``affinity`` is what similar jobs share (a session, a prompt's beginning); ``mean_work``
        is over all replicas, those without room too.
        """
        if len(candidates) == 1:
            return 0
        match self._policy:
            case "round_robin":
                return self._by_turn(candidates)
            case "weighted":
                return _least(candidates, lambda c: (c.work + 1) / max(c.health, 0.01))
            case "sticky":
                home = _home(candidates, affinity())
                if candidates[home].work <= _BOUND * mean_work:
                    return home
            case "least_work":
                pass
        return _least(candidates, lambda c: c.work)

    def _by_turn(self, candidates: Sequence[Candidate]) -> int:
        chosen = _least(candidates, lambda c: self._turns.get(c.id, 0))
        self._turn += 1
        self._turns[candidates[chosen].id] = self._turn
        return chosen


def _least(candidates: Sequence[Candidate], cost: Callable[[Candidate], float]) -> int:
    return min(range(len(candidates)), key=lambda index: cost(candidates[index]))


def _home(candidates: Sequence[Candidate], affinity: bytes) -> int:
    """The same replica for the same affinity, whichever others come and go (rendezvous)."""

    def draw(index: int) -> bytes:
        return hashlib.blake2b(candidates[index].id.encode() + affinity, digest_size=8).digest()

    return max(range(len(candidates)), key=draw)
