"""The model queue holds one model's jobs: waiting, running and isolated ones. Pure.

A job whose worker died is run again. If workers die more than once while several jobs run, the
offender is unknown: then each suspect runs alone, the likeliest first, until one has ended a worker
or all have outlived the time after which the worker had died.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
from msgspec.structs import replace

from bitinglip.access.usage.meter import Reservation
from bitinglip.scheduling.dispatch.balancer import Balancer
from bitinglip.scheduling.dispatch.event_check import EventCheck
from bitinglip.scheduling.dispatch.sessions import Sessions
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.kinds import affinity
from bitinglip.scheduling.models.state import Replica
from bitinglip.scheduling.queue.fair_queue import FairQueue, FairShare
from bitinglip.scheduling.queue.service_time import ServiceTime
from workers import protocol

MAX_ISOLATION_SECONDS = 5.0  #: seconds that a job is isolated at most


class InFlightJob(msgspec.Struct, eq=False):
    """Is a job between admission and the release of everything it holds."""

    event_log: EventLog
    share: FairShare
    host: str  #: the model whose replicas run it
    cost: float  #: as estimated when it was admitted
    reservation: Reservation | None = None  #: of its key's quotas
    input_bytes: int = 0  #: what its input holds in memory
    replica: Replica | None = None
    deaths: int = 0  #: workers that died while they ran it
    excused: int = 0  #: workers that died while they ran it, by no fault of its own
    ran_for: float = 0.0  #: how long it had run when the last one died
    events: EventCheck | None = None  #: of the worker that runs it
    short_of_memory: int = 0  #: times that a worker ran out of memory on it
    abandoned: bool = False  #: its caller has left

    @property
    def id(self) -> str:
        return self.event_log.job.work.id

    def message(self, lora: Callable[[str], protocol.TextLora]) -> protocol.Job:
        """Return what a worker is sent; ``lora`` names what another model's job is made with."""
        message, model = self.event_log.message, self.event_log.job.model
        return message if self.host == model else replace(message, lora=lora(model))


@dataclass(slots=True)
class ModelQueue:
    model: str
    waiting: FairQueue[InFlightJob]
    balancer: Balancer
    service_time: ServiceTime = field(default_factory=ServiceTime)
    retry_queue: deque[InFlightJob] = field(
        default_factory=deque
    )  #: jobs that lost their worker; they go first
    isolation_queue: deque[InFlightJob] = field(
        default_factory=deque
    )  #: suspects that have to run alone
    isolated: InFlightJob | None = None  #: the job that runs alone now
    #: jobs whose turn has come, and whose session's replica is busy
    sessions: Sessions[InFlightJob] = field(default_factory=Sessions)
    running: dict[str, InFlightJob] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Count the waiting jobs."""
        retried = len(self.retry_queue) + len(self.isolation_queue)
        return len(self.waiting) + len(self.sessions) + retried

    def of(self, model: str) -> tuple[int, int]:
        """Count the waiting and the running jobs of a model that is run here: this one is all."""
        if model == self.model:
            return self.depth, len(self.running)
        counts = (
            sum(each.event_log.job.model == model for each in jobs)
            for jobs in (self.waiters(), self.running.values())
        )
        return next(counts), next(counts)

    def counts(self) -> Counter[str]:
        """Count the waiting jobs of each key, without those that are run again."""
        found = self.waiting.counts()
        for entry in self.sessions:
            found[entry.share.key] += 1
        return found

    def waiters(self) -> Iterator[InFlightJob]:
        yield from self.retry_queue
        yield from self.isolation_queue
        yield from self.sessions
        yield from self.waiting

    def begin_at_once(self, entry: InFlightJob, replicas: Sequence[Replica]) -> Replica | None:
        """Start a job on the replica that is returned, if nothing waits; None: it has to wait.

        Most jobs find a free slot, and neither a place in the queue nor a search for the next one
        is needed then.
        """
        if entry.event_log.job.session is not None or self.isolated is not None or self.depth:
            return None
        open_ = [each for each in replicas if each.free_slots > 0]
        if not open_:
            return None
        replica = self._choose(open_, replicas, entry)
        self.waiting.pass_by(entry.share, entry.cost)
        self._start(entry, replica)
        return replica

    def begin(
        self, replicas: Sequence[Replica], now: float
    ) -> Iterator[tuple[InFlightJob, Replica]]:
        """Yield (job, replica) pairs to start now. The caller sends them."""
        if self.isolated is None and self.isolation_queue:
            empty = [
                replica for replica in replicas if replica.free_slots and not replica.in_flight
            ]
            if empty:
                self.isolated = self.isolation_queue.popleft()
                yield self._start(self.isolated, empty[0])
        reserved = self._reserved(replicas)
        if len(self.sessions):
            yield from self._begin_on_own(replicas, reserved)
        while self.retry_queue or self.waiting:
            open_ = [each for each in replicas if each.free_slots > 0 and each is not reserved]
            if not open_:
                return
            entry = self.retry_queue.popleft() if self.retry_queue else self.waiting.pop(now)
            session = entry.event_log.job.session_id
            own = None if session is None else self.sessions.replica(session, replicas)
            if own is not None and own not in open_:
                if self.sessions.may_wait(own):
                    self.sessions.wait(entry, own)
                    continue
                own = None
            replica = own or self._choose(open_, replicas, entry)
            if session is not None:
                self.sessions.bind(session, replica)
            yield self._start(entry, replica)

    def _begin_on_own(
        self, replicas: Sequence[Replica], reserved: Replica | None
    ) -> Iterator[tuple[InFlightJob, Replica]]:
        """Yield the jobs that have waited for the replicas of their sessions."""
        self.retry_queue.extend(self.sessions.orphaned({each.id: each for each in replicas}))
        for replica in replicas:
            while replica.free_slots > 0 and replica is not reserved:
                entry = self.sessions.take(replica)
                if entry is None:
                    break
                yield self._start(entry, replica)

    def _reserved(self, replicas: Sequence[Replica]) -> Replica | None:
        """Return the replica of the isolated job, or the one that empties for isolation."""
        if self.isolated is not None:
            return self.isolated.replica
        return replicas[0] if self.isolation_queue and replicas else None

    def _choose(
        self, open_: Sequence[Replica], replicas: Sequence[Replica], entry: InFlightJob
    ) -> Replica:
        if len(open_) == 1:
            return open_[0]
        mean = sum(replica.cost for replica in replicas) / len(replicas)
        return open_[self.balancer.choose(open_, partial(affinity, entry.event_log.job), mean)]

    def _start(self, entry: InFlightJob, replica: Replica) -> tuple[InFlightJob, Replica]:
        self.running[entry.id] = entry
        entry.replica = replica
        entry.events = EventCheck(entry.event_log.job, entry.cost)
        replica.took(entry.cost)
        return entry, replica

    def release_slot(self, entry: InFlightJob, now: float) -> None:
        """Release the job's slot once its worker has dropped the job."""
        self.running.pop(entry.id, None)
        if entry.replica is not None:
            entry.replica.gave_back(entry.cost, now)
            entry.replica = None
        if entry is self.isolated:
            self.isolated = None

    def forget(self, entry: InFlightJob) -> None:
        """Remove a waiting job."""
        if entry in self.retry_queue:
            self.retry_queue.remove(entry)
        elif entry in self.isolation_queue:
            self.isolation_queue.remove(entry)
        elif not self.sessions.remove(entry):
            self.waiting.remove(entry)

    def isolate(self, entries: Sequence[InFlightJob]) -> None:
        """Run these jobs one by one, in the order of how soon their worker died."""
        suspects = sorted([*self.isolation_queue, *entries], key=lambda entry: entry.ran_for)
        self.isolation_queue = deque(suspects)

    def end_isolation(self, entry: InFlightJob) -> None:
        """Let other jobs run beside an isolated one that its worker has survived."""
        if entry is self.isolated:
            self.isolated = None

    def clear_suspects(self) -> None:
        """Requeue the bystanders once the offender is known."""
        for entry in self.isolation_queue:
            entry.deaths = 0
        self.retry_queue.extend(self.isolation_queue)
        self.isolation_queue.clear()

    def oldest(self) -> InFlightJob | None:
        """Return the job that has waited longest."""
        first = (*self.retry_queue, *self.isolation_queue, *self.sessions, *self.waiting.heads())
        return min(first, key=lambda entry: entry.event_log.submitted, default=None)

    def order(self, now: float) -> list[InFlightJob]:
        """List the waiting jobs in the order of service."""
        first = (*self.retry_queue, *self.isolation_queue, *self.sessions)
        return [*first, *self.waiting.order(now)]
