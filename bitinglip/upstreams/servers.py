"""Chooses among the servers that answer for a model, by their health. Pure but for the clock.

A conversation stays with one server by consistent hashing with bounded loads: a server that has
more than its part of what runs is passed over, so that one busy conversation, or a wave of new
ones, spoils no other's place.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bitinglip.settings.models import Balancing
from workers.protocol import TextJob

_SHORTEST, _LONGEST = 1.0, 60.0  #: seconds for which a server that failed is left alone
_BEGINNING = 1024  #: characters that tell a conversation from others
_MOST_OF_MEAN = 1.25  #: what a server may have, of the mean by weight, before it is passed over
#: how a server's weight falls with a fault and grows with an answer, and how low it falls
_FALL, _GROWTH, _LEAST = 0.5, 1.1, 1 / 16


class ServerView(NamedTuple):
    """Shows a server that answers for a model as clients see it."""

    model: str
    url: str
    running: int
    reason: str | None  #: why it failed; None: it is well
    again_in: float  #: seconds until it is tried again


@dataclass(slots=True, eq=False)
class Server:
    """Holds one server's health, and its number of running jobs."""

    url: str
    running: int = 0
    failures: int = 0  #: in a row
    again_at: float = 0.0  #: when it is tried again
    turn: int = 0  #: number of its last request, among all of the model
    weight: float = 1.0  #: its part of the load, beside others': less after faults

    reason: str | None = None  #: why it failed the last time; None once it has answered

    @property
    def is_well(self) -> bool:
        return self.failures == 0


class Servers:
    """Orders them for each request: those that are well first, by the model's balancing."""

    def __init__(
        self,
        urls: Sequence[str],
        balancing: Balancing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.all = [Server(url.rstrip("/")) for url in urls]
        self._balancing = balancing
        self._clock = clock
        self._turn = 0

    def order(self, job: TextJob | None = None) -> list[Server]:
        """Return the servers to try, the first one first; ``job``: whose conversation goes on.

        Those that failed a moment ago come last, so that a request is tried there only if no other
        server takes it.
        """
        now = self._clock()
        sticky = self._balancing == "sticky" and job is not None
        key = _conversation(job) if sticky and job is not None else ""
        full = self._full(now) if sticky else frozenset()

        def rank(server: Server) -> tuple[object, ...]:
            away = server.again_at > now
            if sticky:
                place = hashlib.sha256(f"{server.url} {key}".encode()).digest()
                return away, server in full, place
            if self._balancing == "round_robin":
                return away, server.turn
            return away, not server.is_well, (server.running + 1) / server.weight, server.turn

        return sorted(self.all, key=rank)

    def _full(self, now: float) -> frozenset[Server]:
        """Return the servers that run their part already of all requests and one more."""
        there = [each for each in self.all if each.again_at <= now]
        running = sum(each.running for each in there) + 1
        share = _MOST_OF_MEAN * running / (sum(each.weight for each in there) or 1)
        return frozenset(each for each in there if each.running >= math.ceil(share * each.weight))

    def took(self, server: Server) -> None:
        """Note that a server is given a request; ``running`` counts it until the caller ends it."""
        self._turn += 1
        server.turn = self._turn
        server.running += 1

    def failed(self, server: Server, reason: str) -> None:
        """Send a server no requests for a while, longer each time."""
        server.failures += 1
        server.reason = reason
        server.weight = max(_LEAST, server.weight * _FALL)
        server.again_at = self._clock() + _pause(server)

    def answered(self, server: Server) -> None:
        """Count a success: a server that had failed gets requests again, more and more of them."""
        server.failures, server.again_at, server.reason = 0, 0.0, None
        server.weight = min(1.0, server.weight * _GROWTH)

    def views(self, model: str) -> list[ServerView]:
        """Show the servers of a model as clients see them."""
        now = self._clock()
        return [
            ServerView(model, each.url, each.running, each.reason, max(0.0, each.again_at - now))
            for each in self.all
        ]

    def take_due(self) -> Sequence[Server]:
        """Return the failed servers that are to be probed now; each once a pause."""
        now = self._clock()
        due = [each for each in self.all if not each.is_well and each.again_at <= now]
        for each in due:
            each.again_at = now + _pause(each)
        return due


def _pause(server: Server) -> float:
    return min(_LONGEST, _SHORTEST * 2.0 ** min(server.failures - 1, 10))


def _conversation(job: TextJob) -> str:
    """Return a key that stays the same over the turns of a conversation."""
    if job.messages:
        first = next((each for each in job.messages if each.role == "user"), job.messages[0])
        beginning = job.messages[0].content[:_BEGINNING] + first.content[:_BEGINNING]
    else:
        beginning = (job.prompt or "")[:_BEGINNING]
    return f"{job.prefix_scope} {beginning}"
