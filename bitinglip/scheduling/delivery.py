"""Work to workers, events back to inboxes: the side of the dispatcher that faces the workers."""

import asyncio
from collections.abc import Callable

import structlog

from bitinglip import errors
from bitinglip.scheduling.balance import Balancer
from bitinglip.scheduling.fairness import FairQueue
from bitinglip.scheduling.inbox import Loading, Queued
from bitinglip.scheduling.lane import MOST_EXPOSURE, Flight, Lane
from bitinglip.scheduling.quarantine import Quarantine
from bitinglip.scheduling.recent import Recent
from bitinglip.scheduling.replica import Replica
from bitinglip.scheduling.residency import ON_REQUEST, Residency, Waiting
from bitinglip.settings import Settings
from workers import protocol
from workers.pool import Worker

log = structlog.get_logger(__name__)

_KEEP_ENDED = 256  #: ended jobs that can still be asked about
_MOST_DEATHS = 2  #: workers that may die of a job
_GRACE = 0.5  #: seconds that a suspect runs alone beyond the moment of the last death
_ANNOUNCE = 0.25  #: seconds between two words to those who wait


class Delivery:
    """Owns lanes and flights. Hears of workers from the pool, and of models from the residency."""

    def __init__(
        self, settings: Settings, residency: Residency, clock: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._residency = residency
        self._clock = clock
        self._announcing: set[str] = set()
        self.lanes: dict[str, Lane] = {}
        self.flights: dict[str, Flight] = {}
        self.recent = Recent(_KEEP_ENDED)
        self.quarantine = Quarantine()
        self.idle = asyncio.Event()
        self.idle.set()
        residency.attach(self)

    def lane(self, model: str) -> Lane:
        lane = self.lanes.get(model)
        if lane is None:
            queue: FairQueue[Flight] = FairQueue(self._settings.queue.ageing)
            balancer = Balancer(self._settings.model(model).balancing)
            lane = self.lanes[model] = Lane(model, queue, balancer)
        return lane

    # ---- begin and end of a flight ---------------------------------------------------------------

    def add(self, flight: Flight) -> None:
        """Let an admitted flight wait, and start what can be started."""
        lane = self.lane(flight.inbox.job.model)
        self.flights[flight.id] = flight
        self.idle.clear()
        ahead = lane.waiting.push(flight, flight.share, flight.work, self._clock())
        self.pump(lane)
        if flight.replica is None:
            flight.inbox.put(Queued(ahead + 1, self.eta(lane, ahead)))
            self._residency.want(lane.model)

    def recall(self, flight: Flight) -> None:
        """Stop the work on a job whose end is already decided on this side."""
        if flight.replica is None:
            self.lanes[flight.inbox.job.model].forget(flight)
        elif flight.replica.worker is not None:
            flight.replica.worker.send(protocol.Cancel(flight.id))

    def release(self, flight: Flight) -> None:
        if self.flights.pop(flight.id, None):
            self.recent.add(flight.inbox)
        if not self.flights:
            self.idle.set()

    def fail(self, flight: Flight, error: errors.BitingLipError) -> None:
        """End a flight with an error of our own, unless it has ended."""
        if flight.inbox.final is not None:
            return
        self.recall(flight)
        flight.inbox.put(
            protocol.Failed(
                id=flight.id,
                code=errors.answer(error).code,
                message=error.message,
                param=error.param,
                details=error.details,
            )
        )

    # ---- work to workers -------------------------------------------------------------------------

    def pump(self, lane: Lane) -> None:
        """Send what the replicas have room for; tell the rest where they stand, now and then."""
        if not lane.depth:
            return
        replicas = self._residency.serving(lane.model)
        if not replicas:
            return
        for flight, replica in lane.begin(replicas, self._clock()):
            assert replica.worker is not None
            flight.inbox.dispatch(replica.worker.id)
            replica.worker.send(flight.inbox.job.message())
            if flight is lane.trial:
                self._time_trial(lane, flight)
        if lane.depth and lane.model not in self._announcing:
            self._announcing.add(lane.model)
            asyncio.get_running_loop().call_later(_ANNOUNCE, self._announce, lane)

    def _announce(self, lane: Lane) -> None:
        self._announcing.discard(lane.model)
        for ahead, flight in enumerate(lane.order(self._clock())):
            if flight.inbox.job.stream:
                flight.inbox.put(Queued(ahead + 1, self.eta(lane, ahead)))

    def eta(self, lane: Lane, ahead: int) -> float | None:
        """Seconds until a job with so many before it begins; None where nobody can say."""
        replicas = self._residency.serving(lane.model)
        if not replicas:
            return self._residency.load_eta(lane.model)
        if ahead < sum(replica.room for replica in replicas):
            return 0.0
        wait = lane.pace.wait(ahead, sum(replica.slots for replica in replicas))
        return None if wait is None else round(wait, 3)

    def _time_trial(self, lane: Lane, flight: Flight) -> None:
        """One that ran out of memory keeps the worker to itself to its end."""
        if not flight.short_of_memory:
            seconds = flight.exposure + _GRACE
            asyncio.get_running_loop().call_later(seconds, self._acquit, lane, flight)

    def _acquit(self, lane: Lane, flight: Flight) -> None:
        lane.acquit(flight)
        self.pump(lane)

    # ---- what workers say ------------------------------------------------------------------------

    def on_events(self, worker: Worker, events: list[protocol.JobEvent]) -> None:
        ended: set[str] = set()
        for event in events:
            flight = self.flights.get(event.id)
            if flight is None or flight.replica is None or flight.replica.worker is not worker:
                continue
            if isinstance(event, protocol.Failed) and self._short_of_memory(flight, event):
                continue
            flight.inbox.put(event)
            if isinstance(event, protocol.Final):
                ended.add(flight.inbox.job.model)
                self._measure(flight, event)
                self._land(flight)
        for model in ended:
            self.pump(self.lanes[model])
            self._residency.worked(model)

    def _measure(self, flight: Flight, final: protocol.Final) -> None:
        """Correct what its key was charged, and learn how fast the replica is."""
        if isinstance(final, protocol.Failed) or flight.replica is None:
            return
        done = flight.inbox.job.work_done(final)
        lane = self.lanes[flight.inbox.job.model]
        lane.waiting.charge(flight.share, done - flight.work)
        seconds = self._clock() - (flight.inbox.dispatched or self._clock())
        flight.replica.measured(done, seconds)
        if isinstance(final, protocol.Success):
            lane.pace.ended(seconds)

    def _land(self, flight: Flight) -> None:
        """The worker holds nothing for this job any more."""
        self.lanes[flight.inbox.job.model].land(flight, self._clock())
        if flight.abandoned:
            self.release(flight)

    def _short_of_memory(self, flight: Flight, failed: protocol.Failed) -> bool:
        """The ladder's next step: room is made beside the worker, and the job runs alone, once."""
        if failed.code != "OUT_OF_MEMORY" or flight.abandoned or flight.inbox.sent_any:
            return False
        if flight.short_of_memory or flight.replica is None:
            failed.details["tried"] = ["unused models beside it evicted", "alone on its worker"]
            failed.details["ways_out"] = self._residency.more_room(flight.inbox.job.model)
            return False
        flight.short_of_memory += 1
        replica, lane = flight.replica, self.lanes[flight.inbox.job.model]
        self._land(flight)
        flight.inbox.rewind()
        self._residency.relieve(replica)
        lane.suspect([flight])
        self.pump(lane)
        return True

    def on_progress(self, worker: Worker, fraction: float) -> None:
        self._residency.on_progress(worker, fraction)
        lane = self.lanes.get(worker.spec.model) if worker.spec else None
        if lane is None or self._residency.serving(lane.model):
            return
        for flight in lane.waiters():
            flight.inbox.put(Loading(fraction))

    def on_lost(self, worker: Worker, cause: str) -> None:
        """Run again what had sent nothing, end the rest, and have the model restarted."""
        replica = self._residency.replica_of(worker)
        lane = self.lanes.get(replica.model) if replica is not None else None
        if replica is not None and lane is not None:
            self._judge(lane, replica, cause)
        self._residency.on_lost(worker, cause)
        if lane is not None:
            self.pump(lane)  # another replica may have room for those that lost theirs

    # ---- what the residency says -----------------------------------------------------------------

    def on_ready(self, model: str) -> None:
        if lane := self.lanes.get(model):
            self.pump(lane)

    def on_unavailable(self, model: str, error: errors.BitingLipError) -> None:
        """The model cannot be had: nobody waits for it in vain."""
        lane = self.lanes.get(model)
        for flight in list(lane.waiters()) if lane else ():
            self.fail(flight, error)

    def waiting(self, model: str) -> Waiting | None:
        lane = self.lanes.get(model)
        oldest = lane.oldest() if lane else None
        if lane is None or oldest is None:
            return None
        level = lane.waiting.top_level(self._clock())
        return Waiting(lane.depth, oldest.inbox.submitted, level)

    def busy(self, model: str) -> int:
        lane = self.lanes.get(model)
        return lane.depth + len(lane.running) if lane else 0

    def forgive(self, model: str) -> None:
        self.quarantine.release(model)

    # ---- who killed the worker -------------------------------------------------------------------

    def _judge(self, lane: Lane, replica: Replica, cause: str) -> None:
        lost = [flight for flight in lane.running.values() if flight.replica is replica]
        now = self._clock()
        again: list[Flight] = []
        for flight in lost:
            self._land(flight)
            if flight.inbox.final is not None:
                continue
            if flight.inbox.sent_any:
                self.fail(flight, _crashed(cause, quarantined=False))
                continue
            if cause != ON_REQUEST:
                flight.deaths += 1
                began = flight.inbox.dispatched or now
                flight.exposure = min(MOST_EXPOSURE, now - began)
            flight.inbox.rewind()
            again.append(flight)
        self._sentence(lane, again, cause, alone=len(lost) == 1)

    def _sentence(self, lane: Lane, flights: list[Flight], cause: str, *, alone: bool) -> None:
        """Once may be chance: run it again. Twice, and alone: it is to blame. Twice in company:
        they go on trial, one by one."""
        doubtful = [flight for flight in flights if flight.deaths >= _MOST_DEATHS]
        lane.again.extendleft(f for f in reversed(flights) if f.deaths < _MOST_DEATHS)
        if alone and doubtful:
            culprit = doubtful[0]
            self.quarantine.add(culprit.inbox.job)
            log.error("request quarantined", model=lane.model, task=culprit.id, cause=cause)
            lane.again.append(culprit)  # so that it can be taken out like any that waits
            self.fail(culprit, _crashed(cause, quarantined=True))
            lane.clear()
        elif doubtful:
            lane.suspect(doubtful)


def _crashed(cause: str, *, quarantined: bool) -> errors.WorkerCrashed:
    return errors.WorkerCrashed(
        f"The worker {cause} while it ran this request.", details={"quarantined": quarantined}
    )
