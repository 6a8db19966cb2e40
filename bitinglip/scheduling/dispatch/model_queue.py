"""One model's jobs: those that wait, those that run, and those that are under suspicion. Pure.

A job whose worker died is run again. When workers die under it more than once in company, nobody
knows who is to blame: then each of them runs alone, the likeliest first, until one has been
caught or all have outlived the time after which the worker had died.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bitinglip.scheduling.dispatch.balancer import Balancer
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.models.state import Replica
from bitinglip.scheduling.queue.fair_queue import FairQueue, FairShare
from bitinglip.scheduling.queue.service_time import ServiceTime

MAX_ISOLATION_SECONDS = 5.0  #: seconds that a trial takes at most


@dataclass(slots=True, eq=False)
class InFlightJob:
    """One job between admission and the release of everything it holds."""

    event_log: EventLog
    share: FairShare
    work: float  #: as estimated when it was admitted
    replica: Replica | None = None
    deaths: int = 0  #: workers that died while they ran it
    ran_for: float = 0.0  #: how long it had run when the last one died
    short_of_memory: int = 0  #: times that a worker ran out of memory on it
    abandoned: bool = False  #: nobody reads the inbox any more

    @property
    def id(self) -> str:
        return self.event_log.job.id


@dataclass(slots=True)
class ModelQueue:
    model: str
    waiting: FairQueue[InFlightJob]
    balancer: Balancer
    pace: ServiceTime = field(default_factory=ServiceTime)
    retry_queue: deque[InFlightJob] = field(
        default_factory=deque
    )  #: lost their worker; they go first
    isolation_queue: deque[InFlightJob] = field(default_factory=deque)  #: have to run by themselves
    isolated: InFlightJob | None = None  #: the one that runs by itself now
    running: dict[str, InFlightJob] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self.waiting) + len(self.retry_queue) + len(self.isolation_queue)

    def waiters(self) -> Iterator[InFlightJob]:
        yield from self.retry_queue
        yield from self.isolation_queue
        yield from self.waiting

    def begin(
        self, replicas: Sequence[Replica], now: float
    ) -> Iterator[tuple[InFlightJob, Replica]]:
        """What starts now, and where; the caller sends it."""
        if self.isolated is None and self.isolation_queue:
            empty = [
                replica for replica in replicas if replica.free_slots and not replica.in_flight
            ]
            if empty:
                self.isolated = self.isolation_queue.popleft()
                yield self._start(self.isolated, empty[0])
        reserved = self._reserved(replicas)
        while self.retry_queue or self.waiting:
            open_ = [each for each in replicas if each.free_slots > 0 and each is not reserved]
            if not open_:
                return
            entry = self.retry_queue.popleft() if self.retry_queue else self.waiting.pop(now)
            yield self._start(entry, self._choose(open_, replicas, entry))

    def _reserved(self, replicas: Sequence[Replica]) -> Replica | None:
        """The replica that a trial has for itself, or that empties so that one can begin."""
        if self.isolated is not None:
            return self.isolated.replica
        return replicas[0] if self.isolation_queue and replicas else None

    def _choose(
        self, open_: Sequence[Replica], replicas: Sequence[Replica], entry: InFlightJob
    ) -> Replica:
        if len(open_) == 1:
            return open_[0]
        mean = sum(replica.work for replica in replicas) / len(replicas)
        return open_[self.balancer.choose(open_, entry.event_log.job.affinity, mean)]

    def _start(self, entry: InFlightJob, replica: Replica) -> tuple[InFlightJob, Replica]:
        self.running[entry.id] = entry
        entry.replica = replica
        replica.took(entry.work)
        return entry, replica

    def release_slot(self, entry: InFlightJob, now: float) -> None:
        """The worker holds nothing for this flight any more."""
        self.running.pop(entry.id, None)
        if entry.replica is not None:
            entry.replica.gave_back(entry.work, now)
            entry.replica = None
        if entry is self.isolated:
            self.isolated = None

    def forget(self, entry: InFlightJob) -> None:
        """Take a flight that waits out of wherever it waits."""
        if entry in self.retry_queue:
            self.retry_queue.remove(entry)
        elif entry in self.isolation_queue:
            self.isolation_queue.remove(entry)
        else:
            self.waiting.remove(entry)

    def isolate(self, entries: Sequence[InFlightJob]) -> None:
        """Try these one by one, those first that the worker died of soonest."""
        everybody = sorted([*self.isolation_queue, *entries], key=lambda entry: entry.ran_for)
        self.isolation_queue = deque(everybody)

    def end_isolation(self, entry: InFlightJob) -> None:
        """It has run for longer than the worker lived: others may run beside it."""
        if entry is self.isolated:
            self.isolated = None

    def clear_suspects(self) -> None:
        """The culprit is caught: the others are above suspicion."""
        for entry in self.isolation_queue:
            entry.deaths = 0
        self.retry_queue.extend(self.isolation_queue)
        self.isolation_queue.clear()

    def oldest(self) -> InFlightJob | None:
        """The one that has waited longest."""
        first = (*self.retry_queue, *self.isolation_queue, *self.waiting.heads())
        return min(first, key=lambda entry: entry.event_log.submitted, default=None)

    def order(self, now: float) -> list[InFlightJob]:
        """Those that wait, as they would go."""
        return [*self.retry_queue, *self.isolation_queue, *self.waiting.order(now)]
