"""The dispatcher admits jobs, queues them and ends each exactly once.

This is the side that callers use; delivery is the side that faces the workers. Everything runs on
the event loop and blocks nowhere.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import structlog

from bitinglip import errors
from bitinglip.access.shared.quotas import SharedQuotas
from bitinglip.access.usage.amounts import Units
from bitinglip.access.usage.meter import Held, Meter
from bitinglip.coarse_timer import CoarseTimer
from bitinglip.guard.guard import Guard
from bitinglip.scheduling.dispatch import admission
from bitinglip.scheduling.dispatch.delivery import Delivery
from bitinglip.scheduling.dispatch.model_queue import InFlightJob, ModelQueue
from bitinglip.scheduling.dispatch.open_job import OpenJob
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Claim, Job
from bitinglip.scheduling.kinds import cost, input_bytes
from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.queue.fair_queue import FairShare
from bitinglip.scheduling.queue.overload import OverloadController, Pressure
from bitinglip.scheduling.usage import cancelled, most_used, tokens_of
from bitinglip.settings import Settings
from bitinglip.telemetry.metrics import Metrics
from workers import protocol

log = structlog.get_logger(__name__)

OnTraced = Callable[[EventLog, tuple[float, float] | None], None]  #: a job's end, its load's span
_TICK_SECONDS = 0.5  #: between two measurements of the overload
_STEP_SECONDS = 1.0  #: of long timeouts, which may be late by two of these


class Dispatcher:
    """Admits jobs, and holds each until it has ended."""

    def __init__(
        self,
        settings: Settings,
        manager: ModelManager,
        metrics: Metrics,
        guard: Guard | None = None,
        *,
        meter: Meter | None = None,
        shared: SharedQuotas | None = None,
        on_traced: OnTraced = lambda _event_log, _load: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter = Meter() if meter is None else meter
        self._settings = settings
        self._manager = manager
        self._metrics = metrics
        self._guard = guard
        self._clock = clock
        self._top_rank = max(tier.priority for _, tier in settings.limits.tiers)
        self.delivery = Delivery(settings, manager, clock, self._meter)
        self.shared = shared
        self.overload = OverloadController()
        self._on_traced = on_traced
        self.draining = False
        self.deadlines: CoarseTimer[InFlightJob] = CoarseTimer(self.expire, step=_STEP_SECONDS)

    async def reserve(self, job: Job) -> Held | None:
        """Reserve a job's part of quotas that gateways share, for ``open``; None where none are.

        Raises what ``open`` raises, and LimitsUnavailable.
        """
        if self.shared is None:
            return None
        self._check(job, host := self._manager.host(job.model))
        return await self.shared.reserve(job.key_id, lambda: self._most_used(job, host))

    def open(self, job: Job, *, admitted: bool = False, held: Held | None = None) -> OpenJob:
        """Admit a job and hold its event log open around the whole answer.

        Leaving ends the job if it still runs and releases what it holds; no other code does. Raises
        QueueFull, Overloaded, ShuttingDown, ModelLoadFailed, ModelDoesNotFit, WorkerCrashed (a
        request in quarantine), QuotaExceeded or RateLimitExceeded (of tokens) before any work is
        done. The last two are not raised for what an earlier run of the server ``admitted``, nor
        for what ``reserve`` holds already, which is given back if the job is refused.
        """
        return OpenJob(self, job, admitted=admitted, held=held)

    def share(self, rank: int) -> float:
        """Return the part of its rates that a tier of this priority keeps under lasting load."""
        return self.overload.sustained_share(rank, self._top_rank)

    def check(self, job: Job, held: int = 0) -> None:
        """Raise what ``open`` would raise for this job now; for work that comes before.

        ``held``: the bytes of its body that are counted as input still.
        """
        host = self._manager.host(job.model)
        self._check(job, host)
        self.delivery.input_memory.check(job.key_id, input_bytes(job), held)
        self._meter.check(job.key_id, partial(self._most_used, job, host))

    def record(self, job_id: str) -> None:
        """Let the charge of an asynchronous task be written: its end is in the database."""
        entry = self.delivery.entries.get(job_id)
        if entry is not None and entry.reservation is not None:
            self._meter.record(entry.reservation)

    def close(self) -> None:
        """Settle what no worker will end any more; called once the workers have stopped."""
        for entry in self.delivery.entries.values():
            self.delivery.settle(entry)

    @contextmanager
    def holding(self, job: Job) -> Iterator[None]:
        """Count the input of a job that waits outside the queue. Raises QueueFull."""
        with self.delivery.input_memory.growing(job.key_id) as grow:
            grow(input_bytes(job))
            yield

    async def charge_cached(self, job: Job) -> None:
        """Charge a job's key for a request whose answer was known. Raises QuotaExceeded."""
        if self.shared is None or not await self.shared.charge_cached(job.key_id, job.model):
            self._meter.charge_cached(job.key_id, job.model)

    def remember(self, event_log: EventLog) -> None:
        """Keep the ended event log of a job that did not run here, to be found like those."""
        self.delivery.recent.add(event_log)

    def cancel(self, job_id: str) -> bool:
        """End a job as cancelled; return False if no job of that id runs."""
        entry = self.delivery.entries.get(job_id)
        if entry is None or entry.event_log.final is not None:
            return False
        self.delivery.cancel_on_worker(entry)
        entry.event_log.put(cancelled(entry.event_log))
        return True

    def claims(self) -> set[Claim]:
        """Return what the jobs that wait or run need of their keys."""
        return {entry.event_log.job.claim for entry in self.delivery.entries.values()}

    def cancel_of(self, claim: Claim) -> int:
        """End all jobs with this claim as cancelled; return how many."""
        entries = list(self.delivery.entries.values())
        return sum(self.cancel(each.id) for each in entries if each.event_log.job.claim == claim)

    async def drain(self, seconds: float) -> None:
        """Refuse new jobs, let running ones finish for so many seconds, then fail the rest."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self.delivery.idle.wait()
        except TimeoutError:
            for entry in list(self.delivery.entries.values()):
                self.delivery.fail(entry, errors.ShuttingDown())

    # ---- what can be asked -----------------------------------------------------------------------

    def find(self, job_id: str) -> EventLog | None:
        """Return the event log of a job that waits, runs or ended recently."""
        entry = self.delivery.entries.get(job_id)
        return entry.event_log if entry else self.delivery.recent.get(job_id)

    def event_logs(self) -> list[EventLog]:
        """List the event logs of waiting, running and recent jobs, the newest first."""
        running = [entry.event_log for entry in reversed(self.delivery.entries.values())]
        return running + list(self.delivery.recent)

    @property
    def in_flight(self) -> int:
        """Count the admitted jobs that are not yet released, waiting ones included."""
        return len(self.delivery.entries)

    @property
    def queued(self) -> int:
        return sum(model_queue.depth for model_queue in self._model_queues)

    def depth(self, model: str) -> int:
        return self.delivery.of(model)[0]

    def depths(self) -> Mapping[str, int]:
        return {model_queue.model: model_queue.depth for model_queue in self._model_queues}

    def running(self, model: str) -> int:
        return self.delivery.of(model)[1]

    def oldest_wait(self, model: str) -> float | None:
        """Return the seconds that the model's oldest request has waited; None if none waits."""
        waiting = self.delivery.waiting(self._manager.host(model))
        return self._clock() - waiting.since if waiting else None

    def eta(self, model: str) -> float | None:
        """Estimate the seconds until a new request would begin; None if unknown."""
        model_queue = self.delivery.model_queues.get(self._manager.host(model))
        return (
            self.delivery.eta(model_queue, model_queue.depth) if model_queue is not None else None
        )

    def tokens(self) -> Iterator[tuple[str, int, int]]:
        """Yield the model of each job that is not counted yet, and the tokens it took so far."""
        for entry in self.delivery.entries.values():
            if not entry.abandoned:
                yield entry.event_log.job.model, *tokens_of(entry.event_log)

    async def watch_overload(self) -> None:
        """Measure how late the event loop is, and the overload, for as long as the server runs."""
        while True:
            due = time.monotonic() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            lag = max(0.0, time.monotonic() - due)
            self._metrics.set_loop_lag(lag)
            self.tick(lag)

    def tick(self, lag_seconds: float) -> None:
        """Measure the overload; called at even intervals."""
        waiting = [self.delivery.waiting(each.model) for each in self._model_queues]
        waits = [self._clock() - each.since for each in waiting if each is not None]
        self.overload.observe(
            Pressure(
                lag_seconds=lag_seconds,
                wait=max(waits, default=0.0) / self._settings.server.request_timeout,
                fill=max((model_queue.depth for model_queue in self._model_queues), default=0)
                / max(1, self._most_waiting),
                memory=self._manager.shortage,
            )
        )

    def books(self) -> dict[str, int]:
        """Count what jobs hold: all zero when nothing runs."""
        return {
            "flights": self.in_flight,
            "waiting": self.queued,
            "running": sum(len(model_queue.running) for model_queue in self._model_queues),
            "input_bytes": self.delivery.input_memory.bytes,
        }

    @property
    def _model_queues(self) -> list[ModelQueue]:
        return list(self.delivery.model_queues.values())

    @property
    def _most_waiting(self) -> int:
        return self._settings.queue.max_waiting

    # ---- admission and release -------------------------------------------------------------------

    def admit(self, job: Job, *, admitted: bool, held: Held | None = None) -> InFlightJob:
        """Take a job in; for ``open`` alone."""
        try:
            return self._admit(job, admitted, held)
        except BaseException:
            if held is not None and self.shared is not None:
                self.shared.drop(job.key_id, held)
            raise

    def _admit(self, job: Job, admitted: bool, held: Held | None) -> InFlightJob:
        host = self._manager.host(job.model)
        loaded = self._check(job, host)
        # What may fail comes before what is taken.
        output = self._guard.output(job.work, job.guard) if self._guard and job.guard else None
        event_log = EventLog(job, self._clock, guard=output)
        if not loaded:
            event_log.load_began = event_log.submitted
        size, job_cost = input_bytes(job), cost(job)
        self.delivery.input_memory.take(job.key_id, size)
        try:
            reservation = self._meter.reserve(
                job.key_id,
                job.model,
                partial(self._most_used, job, host),
                admitted=admitted,
                recorded=not job.asynchronous,
                held=held,
            )
        except BaseException:
            self.delivery.input_memory.give_back(job.key_id, size)
            raise
        share = FairShare(job.key_id, job.priority.level, job.priority.weight)
        entry = InFlightJob(event_log, share, host, job_cost, reservation, size)
        self.delivery.add(entry)
        return entry

    def _most_used(self, job: Job, host: str) -> Units:
        manifest = self._manager.model_state(host).manifest
        context = self._settings.model(host).max_context or manifest.max_context
        if context and manifest.max_context and manifest.max_context < context:
            context = manifest.max_context
        gpu_us, prompt_bytes = self._meter.expected_gpu(job.model), manifest.longest_prompt
        return most_used(job, context=context, gpu_us=gpu_us, prompt_bytes=prompt_bytes)

    def _check(self, job: Job, host: str) -> bool:
        """Return whether a replica that would run it is there: of its ``host``."""
        if self.draining:
            raise errors.ShuttingDown()
        self._manager.check(host)
        model_queue = self.delivery.model_queue(host)
        replicas = self._manager.serving(host)
        for replica in replicas:
            if replica.free_slots > 0:
                break
        else:
            self._check_queue(job, model_queue, sum(replica.slots for replica in replicas))
        if job in self.delivery.quarantine:
            raise errors.WorkerCrashed(
                "This request has ended two workers and is not run again.",
                details={"quarantined": True},
            )
        return bool(replicas)

    def _check_queue(self, job: Job, model_queue: ModelQueue, slots: int) -> None:
        of_key = 0
        if job.priority.max_waiting is not None:
            of_key = sum(each.counts()[job.key_id] for each in self._model_queues)
        admission.check(
            job.priority,
            job.key_id,
            model_queue,
            of_key=of_key,
            most_waiting=self._most_waiting,
            overload=self.overload,
            top_rank=self._top_rank,
            slots=slots,
            load_eta=lambda: self.delivery.load_eta(model_queue.model),
        )

    def leave(self, entry: InFlightJob) -> None:
        """End a job that still runs, and release what it holds; for ``open`` alone."""
        entry.abandoned = True
        if entry.event_log.final is None:
            self.delivery.cancel_on_worker(entry)
            entry.event_log.put(cancelled(entry.event_log))
        try:
            if entry.event_log.job.trace is not None:  # before its input is dropped
                self._on_traced(entry.event_log, self._load_of(entry.event_log))
        except Exception:  # nor must one in tracing
            log.exception("a job could not be traced", task=entry.id)
        if entry.replica is None:
            self.delivery.release(entry)
        try:
            self._account(entry)
        except Exception:  # a fault in counting must not replace the answer, which stands
            log.exception("a job could not be counted", task=entry.id)

    def _load_of(self, event_log: EventLog) -> tuple[float, float] | None:
        """Return when the load of the job's replica began and ended; None if that is gone."""
        for replica in self._manager.replicas():
            if replica.id == event_log.worker_id and replica.state == "ready":
                return replica.began, replica.began + replica.load_seconds
        return None

    def expire(self, entry: InFlightJob) -> None:
        """Fail a job whose time is over."""
        seconds = entry.event_log.job.timeout
        self.delivery.fail(
            entry, errors.Timeout(f"The request did not finish within {seconds:g} s.")
        )

    def _account(self, entry: InFlightJob) -> None:
        event_log = entry.event_log
        final = event_log.final
        assert final is not None
        assert event_log.ended is not None
        first = event_log.first_token
        prompt_tokens, completion_tokens = tokens_of(event_log)
        self._metrics.job_finished(
            model=event_log.job.model,
            kind=event_log.job.kind,
            status=_end_of(final),
            queue_seconds=event_log.queue_time,
            first_token_seconds=first - event_log.submitted if first else None,
            duration=event_log.ended - event_log.submitted,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
        if isinstance(final, protocol.TextDone):
            if final.cached_tokens or final.drafted_tokens:
                self._count_shortcuts(event_log.job.model, final)
        elif isinstance(final, protocol.ImageDone):
            self._metrics.images_made(model=event_log.job.model, count=len(final.images))
        elif isinstance(final, (protocol.SpeechDone, protocol.TranscriptionDone)):
            self._metrics.audio_done(model=event_log.job.model, seconds=final.duration)

    def _count_shortcuts(self, model: str, final: protocol.TextDone) -> None:
        if final.cached_tokens:
            self._metrics.tokens_cached(model=model, count=final.cached_tokens)
        if drafted := final.drafted_tokens:
            accepted = min(drafted, final.accepted_tokens)
            self._metrics.tokens_drafted(model=model, drafted=drafted, accepted=accepted)


def _end_of(final: protocol.Final) -> str:
    """Return how a job ended, in the words of the metrics."""
    if isinstance(final, protocol.Succeeds):
        return "done"
    return "failed" if isinstance(final, protocol.Failed) else "cancelled"
