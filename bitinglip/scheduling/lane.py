"""One model's jobs: those that wait, those that run, and those that are under suspicion. Pure.

A job whose worker died is run again. When workers die under it more than once in company, nobody
knows who is to blame: then each of them runs alone, the likeliest first, until one has been
caught or all have outlived the time after which the worker had died.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bitinglip.scheduling.balance import Balancer
from bitinglip.scheduling.fairness import FairQueue, Share
from bitinglip.scheduling.inbox import Inbox
from bitinglip.scheduling.pace import Pace
from bitinglip.scheduling.replica import Replica

MOST_EXPOSURE = 5.0  #: seconds that a trial takes at most


@dataclass(slots=True, eq=False)
class Flight:
    """One job between admission and the release of everything it holds."""

    inbox: Inbox
    share: Share
    work: float  #: as estimated when it was admitted
    replica: Replica | None = None
    deaths: int = 0  #: workers that died while they ran it
    exposure: float = 0.0  #: how long it had run when the last one died
    short_of_memory: int = 0  #: times that a worker ran out of memory on it
    abandoned: bool = False  #: nobody reads the inbox any more

    @property
    def id(self) -> str:
        return self.inbox.job.id


@dataclass(slots=True)
class Lane:
    model: str
    waiting: FairQueue[Flight]
    balancer: Balancer
    pace: Pace = field(default_factory=Pace)
    again: deque[Flight] = field(default_factory=deque)  #: lost their worker; they go first
    alone: deque[Flight] = field(default_factory=deque)  #: have to run by themselves
    trial: Flight | None = None  #: the one that runs by itself now
    running: dict[str, Flight] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self.waiting) + len(self.again) + len(self.alone)

    def waiters(self) -> Iterator[Flight]:
        yield from self.again
        yield from self.alone
        yield from self.waiting

    def begin(self, replicas: Sequence[Replica], now: float) -> Iterator[tuple[Flight, Replica]]:
        """What starts now, and where; the caller sends it."""
        if self.trial is None and self.alone:
            empty = [replica for replica in replicas if replica.room and not replica.in_flight]
            if empty:
                self.trial = self.alone.popleft()
                yield self._start(self.trial, empty[0])
        reserved = self._reserved(replicas)
        while self.again or self.waiting:
            open_ = [each for each in replicas if each.room > 0 and each is not reserved]
            if not open_:
                return
            flight = self.again.popleft() if self.again else self.waiting.pop(now)
            yield self._start(flight, self._choose(open_, replicas, flight))

    def _reserved(self, replicas: Sequence[Replica]) -> Replica | None:
        """The replica that a trial has for itself, or that empties so that one can begin."""
        if self.trial is not None:
            return self.trial.replica
        return replicas[0] if self.alone and replicas else None

    def _choose(
        self, open_: Sequence[Replica], replicas: Sequence[Replica], flight: Flight
    ) -> Replica:
        if len(open_) == 1:
            return open_[0]
        mean = sum(replica.work for replica in replicas) / len(replicas)
        return open_[self.balancer.choose(open_, flight.inbox.job.affinity, mean)]

    def _start(self, flight: Flight, replica: Replica) -> tuple[Flight, Replica]:
        self.running[flight.id] = flight
        flight.replica = replica
        replica.took(flight.work)
        return flight, replica

    def land(self, flight: Flight, now: float) -> None:
        """The worker holds nothing for this flight any more."""
        self.running.pop(flight.id, None)
        if flight.replica is not None:
            flight.replica.gave_back(flight.work, now)
            flight.replica = None
        if flight is self.trial:
            self.trial = None

    def forget(self, flight: Flight) -> None:
        """Take a flight that waits out of wherever it waits."""
        if flight in self.again:
            self.again.remove(flight)
        elif flight in self.alone:
            self.alone.remove(flight)
        else:
            self.waiting.remove(flight)

    def suspect(self, flights: Sequence[Flight]) -> None:
        """Try these one by one, those first that the worker died of soonest."""
        everybody = sorted([*self.alone, *flights], key=lambda flight: flight.exposure)
        self.alone = deque(everybody)

    def acquit(self, flight: Flight) -> None:
        """It has run for longer than the worker lived: others may run beside it."""
        if flight is self.trial:
            self.trial = None

    def clear(self) -> None:
        """The culprit is caught: the others are above suspicion."""
        for flight in self.alone:
            flight.deaths = 0
        self.again.extend(self.alone)
        self.alone.clear()

    def oldest(self) -> Flight | None:
        """The one that has waited longest."""
        first = (*self.again, *self.alone, *self.waiting.heads())
        return min(first, key=lambda flight: flight.inbox.submitted, default=None)

    def order(self, now: float) -> list[Flight]:
        """Those that wait, as they would go."""
        return [*self.again, *self.alone, *self.waiting.order(now)]
