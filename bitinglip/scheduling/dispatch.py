"""The way of a job: admitted, queued, sent to its model's worker, answered exactly once.

What callers see of it; the side that faces the workers is in delivery. Everything runs on the
event loop and blocks nowhere.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from bitinglip import errors
from bitinglip.scheduling import admission
from bitinglip.scheduling.delivery import Delivery
from bitinglip.scheduling.fairness import Share
from bitinglip.scheduling.inbox import Inbox
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.lane import Flight, Lane
from bitinglip.scheduling.load import LoadFactor, Pressure
from bitinglip.scheduling.residency import Residency
from bitinglip.settings import Settings
from bitinglip.telemetry.metrics import Metrics
from workers import protocol

#: how jobs ended, as metrics call it
_ENDS = {
    protocol.Done: "done",
    protocol.Drawn: "done",
    protocol.Spoken: "done",
    protocol.Transcribed: "done",
    protocol.Failed: "failed",
    protocol.Cancelled: "cancelled",
}


class Dispatcher:
    """Admits jobs, and holds each until it has ended."""

    def __init__(
        self,
        settings: Settings,
        residency: Residency,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._residency = residency
        self._metrics = metrics
        self._clock = clock
        self._top_rank = max(tier.priority for _, tier in settings.limits.tiers)
        self.delivery = Delivery(settings, residency, clock)
        self.load = LoadFactor()
        self.draining = False

    @contextmanager
    def open(self, job: Job) -> Iterator[Inbox]:
        """Admit a job and hold its inbox open around the whole answer.

        Leaving ends the job if it still runs and releases what it holds: the one place that
        does. Raises QueueFull, Overloaded, ShuttingDown, ModelLoadFailed, ModelDoesNotFit or
        WorkerCrashed (a request in quarantine) before any work is done.
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
        flight = self.delivery.flights.get(job_id)
        if flight is None or flight.inbox.final is not None:
            return False
        self.delivery.recall(flight)
        flight.inbox.put(protocol.Cancelled(id=job_id))
        return True

    async def drain(self, seconds: float) -> None:
        """Refuse new jobs, give running ones so long, then end them."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self.delivery.idle.wait()
        except TimeoutError:
            for flight in list(self.delivery.flights.values()):
                self.delivery.fail(flight, errors.ShuttingDown())

    # ---- what can be asked -----------------------------------------------------------------------

    def find(self, job_id: str) -> Inbox | None:
        """The inbox of a job that runs, waits or has ended not long ago."""
        flight = self.delivery.flights.get(job_id)
        return flight.inbox if flight else self.delivery.recent.get(job_id)

    def inboxes(self) -> list[Inbox]:
        """All of these, the newest first."""
        running = [flight.inbox for flight in reversed(self.delivery.flights.values())]
        return running + list(self.delivery.recent)

    @property
    def in_flight(self) -> int:
        """Jobs admitted and not yet released, waiting ones included."""
        return len(self.delivery.flights)

    @property
    def queued(self) -> int:
        return sum(lane.depth for lane in self._lanes)

    def depth(self, model: str) -> int:
        lane = self.delivery.lanes.get(model)
        return lane.depth if lane is not None else 0

    def depths(self) -> Mapping[str, int]:
        return {lane.model: lane.depth for lane in self._lanes}

    def running(self, model: str) -> int:
        lane = self.delivery.lanes.get(model)
        return len(lane.running) if lane is not None else 0

    def oldest_wait(self, model: str) -> float | None:
        """Seconds that the oldest request of the model waits; None if none does."""
        waiting = self.delivery.waiting(model)
        return self._clock() - waiting.since if waiting else None

    def eta(self, model: str) -> float | None:
        """Seconds until a request that came now would begin; None where nobody can say."""
        lane = self.delivery.lanes.get(model)
        return self.delivery.eta(lane, lane.depth) if lane is not None else None

    def look(self, lag_seconds: float) -> None:
        """Take a look at the load; called at even intervals."""
        waits = [self.oldest_wait(lane.model) or 0.0 for lane in self._lanes]
        self.load.observe(
            Pressure(
                lag_seconds=lag_seconds,
                wait=max(waits, default=0.0) / self._settings.server.request_timeout,
                fill=max((lane.depth for lane in self._lanes), default=0)
                / max(1, self._most_waiting),
                memory=self._residency.shortage,
            )
        )

    def books(self) -> dict[str, int]:
        """What is held: all zero when nothing runs."""
        return {
            "flights": self.in_flight,
            "waiting": self.queued,
            "running": sum(len(lane.running) for lane in self._lanes),
        }

    @property
    def _lanes(self) -> list[Lane]:
        return list(self.delivery.lanes.values())

    @property
    def _most_waiting(self) -> int:
        return self._settings.queue.max_waiting

    # ---- admission and release -------------------------------------------------------------------

    def _admit(self, job: Job) -> Flight:
        if self.draining:
            raise errors.ShuttingDown()
        self._residency.check(job.model)
        lane = self.delivery.lane(job.model)
        replicas = self._residency.serving(job.model)
        if not any(replica.room > 0 for replica in replicas):
            self._check_queue(job, lane, sum(replica.slots for replica in replicas))
        if job in self.delivery.quarantine:
            raise errors.WorkerCrashed(
                "This request has ended two workers and is not run again.",
                details={"quarantined": True},
            )
        standing = job.standing
        share = Share(job.key_id, standing.level, standing.weight)
        flight = Flight(Inbox(job, self._clock), share, job.work)
        self.delivery.add(flight)
        return flight

    def _check_queue(self, job: Job, lane: Lane, slots: int) -> None:
        of_key = 0
        if job.standing.max_waiting is not None:
            of_key = sum(each.waiting.counts()[job.key_id] for each in self._lanes)
        admission.check(
            job.standing,
            job.key_id,
            lane,
            of_key=of_key,
            most_waiting=self._most_waiting,
            load=self.load,
            top_rank=self._top_rank,
            slots=slots,
        )

    def _leave(self, flight: Flight) -> None:
        flight.abandoned = True
        if flight.inbox.final is None:
            self.delivery.recall(flight)
            flight.inbox.put(protocol.Cancelled(id=flight.id))
        self._account(flight)
        if flight.replica is None:
            self.delivery.release(flight)

    def _expire(self, flight: Flight) -> None:
        seconds = flight.inbox.job.timeout
        self.delivery.fail(
            flight, errors.Timeout(f"The request did not finish within {seconds:g} s.")
        )

    def _account(self, flight: Flight) -> None:
        inbox = flight.inbox
        final = inbox.final
        assert final is not None
        assert inbox.ended is not None
        first = inbox.first_token
        tokens = final if isinstance(final, protocol.Done | protocol.Cancelled) else None
        self._metrics.job_finished(
            model=inbox.job.model,
            kind=inbox.job.kind,
            status=_ENDS[type(final)],
            queue_seconds=inbox.queue_time,
            first_token_seconds=first - inbox.submitted if first else None,
            duration=inbox.ended - inbox.submitted,
            prompt_tokens=tokens.prompt_tokens if tokens else 0,
            completion_tokens=tokens.completion_tokens if tokens else 0,
        )
        if isinstance(final, protocol.Drawn):
            self._metrics.images_made(model=inbox.job.model, count=len(final.pictures))
        if isinstance(final, protocol.Spoken):
            self._metrics.audio_made(model=inbox.job.model, seconds=final.duration)
