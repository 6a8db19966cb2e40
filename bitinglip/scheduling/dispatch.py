"""The way of a job: admitted, queued, sent to its model's worker, answered exactly once.

One owner of queues and flights. Everything here runs on the event loop and blocks nowhere.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from bitinglip import errors
from bitinglip.scheduling.inbox import Inbox, Loading, Queued
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.lane import Flight, Lane
from bitinglip.scheduling.recent import Recent
from bitinglip.scheduling.residency import Residency
from bitinglip.telemetry.metrics import Metrics
from workers import protocol
from workers.pool import Worker

log = structlog.get_logger(__name__)

_KEEP_ENDED = 1000  #: ended jobs that can still be asked about
_MOST_DEATHS = 2  #: a job is run again after the first worker that died of it, not after the second


class Dispatcher:
    """Takes jobs to workers and their events back to inboxes."""

    def __init__(self, residency: Residency, metrics: Metrics, *, max_waiting: int) -> None:
        self._residency = residency
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._lanes: dict[str, Lane] = {}
        self._flights: dict[str, Flight] = {}
        self._recent = Recent(_KEEP_ENDED)
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        residency.attach(self)

    # ---- what the API asks -----------------------------------------------------------------------

    @contextmanager
    def open(self, job: Job) -> Iterator[Inbox]:
        """Admit a job and hold its inbox open around the whole answer.

        Leaving ends the job if it still runs and releases what it holds: the one place that
        does. Raises QueueFull, ShuttingDown or ModelLoadFailed before any work is done.
        """
        flight = self._admit(job)
        timer = asyncio.get_running_loop().call_later(job.timeout, self._expire, flight)
        try:
            yield flight.inbox
        finally:
            timer.cancel()
            self._leave(flight)

    def cancel(self, job_id: str) -> bool:
        """End a job as cancelled; False if there is none of that id that still runs."""
        flight = self._flights.get(job_id)
        if flight is None or flight.inbox.final is not None:
            return False
        self._recall(flight)
        flight.inbox.put(protocol.Cancelled(id=job_id))
        return True

    def find(self, job_id: str) -> Inbox | None:
        """The inbox of a job that runs, waits or has ended not long ago."""
        flight = self._flights.get(job_id)
        return flight.inbox if flight else self._recent.get(job_id)

    def inboxes(self) -> list[Inbox]:
        """All of these, the newest first."""
        return [flight.inbox for flight in reversed(self._flights.values())] + list(self._recent)

    @property
    def in_flight(self) -> int:
        """Jobs admitted and not yet released, waiting ones included."""
        return len(self._flights)

    @property
    def queued(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def depth(self, model: str) -> int:
        lane = self._lanes.get(model)
        return len(lane.waiting) if lane else 0

    def depths(self) -> Mapping[str, int]:
        return {model: len(lane.waiting) for model, lane in self._lanes.items()}

    async def drain(self, seconds: float) -> None:
        """Refuse new jobs, give running ones so long, then cancel them."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            for flight in list(self._flights.values()):
                self._fail(flight, errors.ShuttingDown())

    # ---- admission and release -------------------------------------------------------------------

    def _admit(self, job: Job) -> Flight:
        if self.draining:
            raise errors.ShuttingDown()
        self._residency.want(job.model)
        lane = self._lanes.setdefault(job.model, Lane(job.model, self._max_waiting))
        if lane.full and self._slots(lane) <= len(lane.running):
            raise errors.QueueFull(details={"model": job.model, "waiting": len(lane.waiting)})
        flight = Flight(Inbox(job))
        self._flights[job.id] = flight
        self._idle.clear()
        lane.waiting.append(flight)
        self._pump(lane)
        if flight.worker is None:
            flight.inbox.put(Queued(len(lane.waiting)))
        return flight

    def _leave(self, flight: Flight) -> None:
        flight.abandoned = True
        if flight.inbox.final is None:
            self._recall(flight)
            flight.inbox.put(protocol.Cancelled(id=flight.id))
        self._account(flight)
        if flight.worker is None:
            self._release(flight)

    def _recall(self, flight: Flight) -> None:
        """Stop the work on a job whose end is already decided on this side."""
        if flight.worker is not None:
            flight.worker.send(protocol.Cancel(flight.id))
        else:
            self._lanes[flight.inbox.job.model].forget(flight)

    def _release(self, flight: Flight) -> None:
        if self._flights.pop(flight.id, None):
            self._recent.add(flight.inbox)
        if not self._flights:
            self._idle.set()

    def _expire(self, flight: Flight) -> None:
        if flight.inbox.final is None:
            seconds = flight.inbox.job.timeout
            self._fail(flight, errors.Timeout(f"The request did not finish within {seconds:g} s."))

    def _fail(self, flight: Flight, error: errors.BitingLipError) -> None:
        if flight.inbox.final is not None:
            return
        self._recall(flight)
        flight.inbox.put(
            protocol.Failed(
                id=flight.id,
                code=errors.answer(error).code,
                message=error.message,
                param=error.param,
                details=error.details,
            )
        )

    def _account(self, flight: Flight) -> None:
        inbox = flight.inbox
        final = inbox.final
        assert final is not None
        assert inbox.ended is not None
        first = inbox.first_token
        self._metrics.job_finished(
            model=inbox.job.model,
            kind=inbox.job.kind,
            status=type(final).__name__.lower(),
            queue_seconds=inbox.queue_time,
            first_token_seconds=first - inbox.submitted if first else None,
            duration=inbox.ended - inbox.submitted,
            prompt_tokens=0 if isinstance(final, protocol.Failed) else final.prompt_tokens,
            completion_tokens=0 if isinstance(final, protocol.Failed) else final.completion_tokens,
        )

    # ---- work to workers, events back ------------------------------------------------------------

    def _slots(self, lane: Lane) -> int:
        worker = self._residency.worker(lane.model)
        return worker.ready.slots if worker and worker.ready else 0

    def _pump(self, lane: Lane) -> None:
        """Send what the worker has room for; tell the rest where they stand."""
        worker = self._residency.worker(lane.model)
        if worker is None:
            return
        moved = False
        for flight in lane.begin(self._slots(lane)):
            moved = True
            flight.worker = worker
            flight.inbox.dispatch(worker.id)
            worker.send(flight.inbox.job.message())
        if moved:
            for position, flight in enumerate(lane.waiting, start=1):
                if flight.inbox.job.stream:
                    flight.inbox.put(Queued(position))

    def on_events(self, worker: Worker, events: list[protocol.JobEvent]) -> None:
        ended: set[str] = set()
        for event in events:
            flight = self._flights.get(event.id)
            if flight is None or flight.worker is not worker:
                continue
            flight.inbox.put(event)
            if isinstance(event, protocol.Final):
                ended.add(flight.inbox.job.model)
                self._land(flight)
        for model in ended:
            self._pump(self._lanes[model])

    def _land(self, flight: Flight) -> None:
        """The worker holds nothing for this job any more."""
        self._lanes[flight.inbox.job.model].forget(flight)
        flight.worker = None
        if flight.abandoned:
            self._release(flight)

    def on_progress(self, worker: Worker, fraction: float) -> None:
        lane = self._lanes.get(worker.spec.model) if worker.spec else None
        for flight in lane.waiting if lane else ():
            flight.inbox.put(Loading(fraction))

    def on_ready(self, model: str, worker: Worker) -> None:
        if lane := self._lanes.get(model):
            log.debug("worker takes jobs", model=model, worker=worker.id, waiting=len(lane.waiting))
            self._pump(lane)

    def on_unavailable(self, model: str, error: errors.BitingLipError) -> None:
        """The model cannot be had: nobody waits for it in vain."""
        lane = self._lanes.get(model)
        for flight in list(lane.waiting) if lane else ():
            self._fail(flight, error)

    def on_lost(self, worker: Worker, cause: str) -> None:
        """Run again what had sent nothing, end the rest, and have the model restarted."""
        lane = self._lanes.get(worker.spec.model) if worker.spec else None
        lost = [f for f in lane.running.values() if f.worker is worker] if lane else []
        again: list[Flight] = []
        for flight in lost:
            flight.deaths += 1
            self._land(flight)
            if flight.inbox.final is not None:
                continue
            if flight.inbox.sent_any or flight.deaths >= _MOST_DEATHS:
                self._fail(flight, _crashed(flight, cause))
            else:
                again.append(flight)
        if lane:
            lane.waiting.extendleft(reversed(again))
        self._residency.on_lost(worker, cause)

    def busy(self, model: str) -> int:
        lane = self._lanes.get(model)
        return len(lane.waiting) + len(lane.running) if lane else 0

    def books(self) -> dict[str, int]:
        """What is held: all zero when nothing runs."""
        return {
            "flights": len(self._flights),
            "waiting": self.queued,
            "running": sum(len(lane.running) for lane in self._lanes.values()),
        }


def _crashed(flight: Flight, cause: str) -> errors.WorkerCrashed:
    return errors.WorkerCrashed(
        f"The worker {cause} while it ran this request.",
        details={"quarantined": flight.deaths >= _MOST_DEATHS},
    )
