"""Delivery sends jobs to workers and puts their events into the jobs' event logs."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from bitinglip import errors
from bitinglip.access.usage.amounts import MILLION
from bitinglip.access.usage.meter import Meter
from bitinglip.scheduling.dispatch.balancer import Balancer
from bitinglip.scheduling.dispatch.crashes import crashed, excuse, gave_up
from bitinglip.scheduling.dispatch.input_memory import InputMemory
from bitinglip.scheduling.dispatch.model_queue import MAX_ISOLATION_SECONDS, InFlightJob, ModelQueue
from bitinglip.scheduling.dispatch.quarantine import Quarantine
from bitinglip.scheduling.dispatch.recent import RecentJobs
from bitinglip.scheduling.event_log import Loading, Queued, failed_with, put_guarded
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.kinds import cost_done
from bitinglip.scheduling.models.deaths import Death
from bitinglip.scheduling.models.listener import Waiting
from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.state import Replica
from bitinglip.scheduling.queue.fair_queue import FairQueue
from bitinglip.scheduling.usage import used
from bitinglip.settings import Settings
from workers import protocol
from workers.folders import placed, take_results
from workers.worker import Worker

log = structlog.get_logger(__name__)

_KEEP_ENDED = 256  #: ended jobs that can still be asked about
_MOST_DEATHS = 2  #: workers that may die of a job
_GRACE = 0.5  #: seconds added to the time after which the worker had died
_ANNOUNCE = 0.25  #: seconds between two announcements of positions


class Delivery:
    """Owns model queues and in-flight jobs; the pool and the model manager call it back."""

    def __init__(
        self,
        settings: Settings,
        manager: ModelManager,
        clock: Callable[[], float],
        meter: Meter,
    ) -> None:
        self._settings = settings
        self._meter = meter
        self._manager = manager
        self._clock = clock
        self._announcing: set[str] = set()
        self.model_queues: dict[str, ModelQueue] = {}
        self.entries: dict[str, InFlightJob] = {}
        self.recent = RecentJobs(_KEEP_ENDED)
        self.quarantine = Quarantine()
        self.input_memory = InputMemory(settings.queue.max_input_bytes)
        self.idle = asyncio.Event()
        self.idle.set()

    def model_queue(self, model: str) -> ModelQueue:
        model_queue = self.model_queues.get(model)
        if model_queue is None:
            queue: FairQueue[InFlightJob] = FairQueue(self._settings.queue.ageing)
            balancer = Balancer(self._settings.model(model).balancing)
            model_queue = self.model_queues[model] = ModelQueue(model, queue, balancer)
        return model_queue

    # ---- begin and end of a job ------------------------------------------------------------------

    def add(self, entry: InFlightJob) -> None:
        """Queue an admitted job, and start it if a replica has a free slot."""
        model_queue = self.model_queue(entry.host)
        self.entries[entry.id] = entry
        if self.idle.is_set():
            self.idle.clear()
        replica = model_queue.begin_at_once(entry, self._manager.serving(model_queue.model))
        if replica is not None:
            self._send(entry, replica)
            return
        ahead = model_queue.waiting.push(entry, entry.share, entry.cost, self._clock())
        self.dispatch_waiting(model_queue)
        if entry.replica is None:
            entry.event_log.put(Queued(ahead + 1, self.eta(model_queue, ahead)))
            self._manager.request_load(model_queue.model)

    def cancel_on_worker(self, entry: InFlightJob) -> None:
        """Stop the work on a job that the gateway has ended, or is about to end."""
        if entry.replica is None:
            self.model_queues[entry.host].forget(entry)
        elif entry.replica.worker is not None:
            entry.replica.worker.send(protocol.Cancel(entry.id))

    def release(self, entry: InFlightJob) -> None:
        if self.entries.pop(entry.id, None):
            if entry.reservation is not None and not entry.reservation.settled:
                self.settle(entry)
            self.input_memory.give_back(entry.event_log.job.key_id, entry.input_bytes)
            self.recent.add(entry.event_log)
        if not self.entries:
            self.idle.set()

    def settle(
        self, entry: InFlightJob, last: protocol.Final | None = None, gpu_us: int = 0
    ) -> None:
        """Charge the job's key for what was used, once; ``last``: its worker's last event.

        Without one the job has had no worker, or lost it.
        """
        last = last or entry.event_log.final
        if entry.reservation is not None and last is not None:
            self._meter.settle(entry.reservation, used(entry.event_log, last, gpu_us))

    def fail(self, entry: InFlightJob, error: errors.BitingLipError) -> None:
        """End a job with an error of the gateway, unless it has ended."""
        if entry.event_log.final is not None:
            return
        self.cancel_on_worker(entry)
        entry.event_log.put(failed_with(entry.id, error))

    # ---- jobs to workers -------------------------------------------------------------------------

    def dispatch_waiting(self, model_queue: ModelQueue) -> None:
        """Send jobs to free slots; announce their positions to the others from time to time."""
        if not model_queue.depth:
            return
        replicas = self._manager.serving(model_queue.model)
        if not replicas:
            return
        for entry, replica in model_queue.begin(replicas, self._clock()):
            self._send(entry, replica)
            if entry is model_queue.isolated:
                self._time_isolation(model_queue, entry)
        if model_queue.depth and model_queue.model not in self._announcing:
            self._announcing.add(model_queue.model)
            asyncio.get_running_loop().call_later(_ANNOUNCE, self._announce, model_queue)

    def _send(self, entry: InFlightJob, replica: Replica) -> None:
        worker = replica.worker
        assert worker is not None
        entry.event_log.dispatch(worker.id)
        worker.send(placed(entry.message(self._manager.hosting.lora), worker.folder))

    def _announce(self, model_queue: ModelQueue) -> None:
        self._announcing.discard(model_queue.model)
        for ahead, entry in enumerate(model_queue.order(self._clock())):
            if entry.event_log.job.stream:
                entry.event_log.put(Queued(ahead + 1, self.eta(model_queue, ahead)))

    def eta(self, model_queue: ModelQueue, ahead: int) -> float | None:
        """Estimate the seconds until a job with so many ahead of it begins; None if unknown."""
        replicas = self._manager.serving(model_queue.model)
        if not replicas:
            return self.load_eta(model_queue.model)
        if ahead < sum(replica.free_slots for replica in replicas):
            return 0.0
        wait = model_queue.service_time.wait(ahead, sum(replica.slots for replica in replicas))
        return None if wait is None else round(wait, 3)

    def load_eta(self, model: str) -> float | None:
        """Estimate the seconds until the model is loaded; None if unknown."""
        model_state, facts = self._manager.models.get(model), self._manager.facts
        return facts.load_eta(model_state, self._clock()) if model_state else None

    def _time_isolation(self, model_queue: ModelQueue, entry: InFlightJob) -> None:
        """End isolation in time; a job that ran out of memory keeps the worker to its end."""
        if not entry.short_of_memory:
            seconds = entry.ran_for + _GRACE
            asyncio.get_running_loop().call_later(seconds, self._end_isolation, model_queue, entry)

    def _end_isolation(self, model_queue: ModelQueue, entry: InFlightJob) -> None:
        model_queue.end_isolation(entry)
        self.dispatch_waiting(model_queue)

    # ---- events of workers -----------------------------------------------------------------------

    def on_events(self, worker: Worker, events: list[protocol.JobEvent]) -> None:
        """Raises BadFrame for an event that does not fit its job."""
        ended: set[str] = set()
        try:
            for sent in events:
                entry = self.entries.get(sent.id)
                if entry is None or entry.replica is None or entry.replica.worker is not worker:
                    continue
                if entry.events is not None:
                    entry.events.take(sent)
                event, event_log = sent, entry.event_log
                if isinstance(sent, protocol.Succeeds):
                    event = _with_results(worker, event_log.job, sent)
                if isinstance(event, protocol.Failed) and self._short_of_memory(entry, event):
                    continue
                if event_log.guard is None:
                    event_log.put(event)
                elif (refused := put_guarded(event_log, event)) is not None:
                    self.fail(entry, refused)
                if isinstance(event, protocol.Ends):
                    ended.add(entry.host)
                    self._end(entry, entry.replica, event)
        finally:
            for model in ended:
                self.dispatch_waiting(self.model_queues[model])
                self._manager.on_jobs_finished(model)

    def _end(self, entry: InFlightJob, replica: Replica, final: protocol.Final) -> None:
        """Release the job's slot, whatever comes of the figures."""
        now = self._clock()
        seconds = now - (entry.event_log.dispatched or now)
        self.settle(entry, final, round(seconds * MILLION) * replica.accelerators)
        self._release_slot(entry, now)
        if not isinstance(final, protocol.Failed):
            self._measure(entry, replica, final, now, seconds)

    def _measure(
        self,
        entry: InFlightJob,
        replica: Replica,
        final: protocol.Success | protocol.Cancelled,
        now: float,
        seconds: float,
    ) -> None:
        """Correct the charge of its key, and learn the speed of the replica."""
        done = cost_done(entry.event_log.job, final)
        model_queue = self.model_queues[entry.host]
        model_queue.waiting.charge(entry.share, done - entry.cost)
        replica.measured(done, seconds)
        if isinstance(final, protocol.Succeeds):
            model_queue.service_time.ended(seconds)
            replica.answered_at = now

    def _release_slot(self, entry: InFlightJob, now: float) -> None:
        """Release the job's slot once its worker has dropped the job."""
        self.model_queues[entry.host].release_slot(entry, now)
        if entry.abandoned:
            self.release(entry)

    def _short_of_memory(self, entry: InFlightJob, failed: protocol.Failed) -> bool:
        """Run a job that ran out of memory again, once: alone, after evictions near its worker."""
        if failed.code != "OUT_OF_MEMORY" or entry.abandoned or entry.event_log.output_seen:
            return False
        if entry.short_of_memory or entry.replica is None:
            failed.details["tried"] = ["unused models beside it evicted", "alone on its worker"]
            manifest = self._manager.model_state(entry.host).manifest
            ways_out: list[Any] = self._manager.facts.memory_suggestions(manifest)
            failed.details["ways_out"] = ways_out
            return False
        entry.short_of_memory += 1
        replica, model_queue = entry.replica, self.model_queues[entry.host]
        self._release_slot(entry, self._clock())
        entry.event_log.reset_output()
        self._manager.free_memory_near(replica)
        model_queue.isolate([entry])
        self.dispatch_waiting(model_queue)
        return True

    def on_progress(self, worker: Worker, fraction: float) -> None:
        self._manager.on_progress(worker, fraction)
        model_queue = self.model_queues.get(worker.spec.model) if worker.spec else None
        if model_queue is None or self._manager.serving(model_queue.model):
            return
        for entry in model_queue.waiters():
            entry.event_log.put(Loading(fraction))

    def on_lost(self, worker: Worker, cause: str) -> None:
        """Run jobs without output again, end the rest, and have the model restarted."""
        replica = self._manager.by_worker.get(worker)
        if replica is None:
            return
        model_queue = self.model_queues.get(replica.model)
        death = self._manager.deaths.judge(replica, worker.fault, cause, self._clock())
        forgiven = 0
        if model_queue is not None:
            forgiven = self._handle_lost_jobs(model_queue, replica, cause, death)
        self._manager.on_lost(worker, cause, death, forgiven=forgiven)
        if model_queue is not None:
            # Another replica may have room for those that lost theirs.
            self.dispatch_waiting(model_queue)

    # ---- events of the model manager -------------------------------------------------------------

    def on_ready(self, model: str) -> None:
        if model_queue := self.model_queues.get(model):
            self.dispatch_waiting(model_queue)

    def on_unavailable(self, model: str, error: errors.BitingLipError) -> None:
        """Fail the waiting jobs of a model that cannot be loaded."""
        model_queue = self.model_queues.get(model)
        for entry in list(model_queue.waiters()) if model_queue else ():
            self.fail(entry, error)

    def waiting(self, model: str) -> Waiting | None:
        model_queue = self.model_queues.get(model)
        oldest = model_queue.oldest() if model_queue else None
        if model_queue is None or oldest is None:
            return None
        level = model_queue.waiting.top_level(self._clock())
        return Waiting(model_queue.depth, oldest.event_log.submitted, level)

    def busy(self, model: str) -> int:
        return sum(self.of(model))

    def of(self, model: str) -> tuple[int, int]:
        """Count the model's waiting and its running jobs, wherever they are run."""
        places = {model, self._manager.host(model)}  # a LoRA that was merged may have jobs in both
        counts = [own.of(model) for each in places if (own := self.model_queues.get(each))]
        return sum(waiting for waiting, _ in counts), sum(running for _, running in counts)

    def clear_quarantine(self, model: str) -> None:
        adapters = self._manager.hosting.adapters(model)
        self.quarantine.release({model, *(each.name for each in adapters)})

    # ---- quarantine ------------------------------------------------------------------------------

    def _handle_lost_jobs(
        self, model_queue: ModelQueue, replica: Replica, cause: str, death: Death
    ) -> int:
        """Return the deaths of a request that was found to cause them; 0 if none was."""
        lost = [entry for entry in model_queue.running.values() if entry.replica is replica]
        now = self._clock()
        retry_queue: list[InFlightJob] = []
        for entry in lost:
            self._release_slot(entry, now)
            if entry.event_log.final is not None:
                continue
            if entry.event_log.output_seen:
                self.fail(entry, crashed(cause, quarantined=False))
                continue
            began = entry.event_log.dispatched or now
            entry.ran_for = min(MAX_ISOLATION_SECONDS, now - began)
            entry.event_log.reset_output()
            if death.blame == "request":
                entry.deaths += 1
                death.undo.append(partial(excuse, entry))
            retry_queue.append(entry)
        if death.is_excused:
            self._retry_excused(model_queue, retry_queue, cause, death)
            return 0
        return self._retry_or_quarantine(
            model_queue, retry_queue, cause, death, alone=len(lost) == 1
        )

    def _retry_excused(
        self, model_queue: ModelQueue, entries: list[InFlightJob], cause: str, death: Death
    ) -> None:
        """Run jobs again whose worker did not die of them, but not for ever: those that memory
        ran out on alone the second time, none a third time."""
        again: list[InFlightJob] = []
        for entry in entries:
            entry.excused += 1
            if entry.excused <= _MOST_DEATHS:
                again.append(entry)
                continue
            model_queue.retry_queue.append(entry)  # so that it can be taken out like any that waits
            self.fail(entry, gave_up(cause, death))
        if death.blame == "memory":
            alone = [entry for entry in again if entry.excused == _MOST_DEATHS]
            for entry in alone:
                entry.short_of_memory += 1
                again.remove(entry)
            model_queue.isolate(alone)
        model_queue.retry_queue.extendleft(reversed(again))

    def _retry_or_quarantine(
        self,
        model_queue: ModelQueue,
        entries: list[InFlightJob],
        cause: str,
        death: Death,
        *,
        alone: bool,
    ) -> int:
        """Run jobs again after one death; after two, quarantine a job that ran alone, else isolate
        the suspects. Return the deaths of the one in quarantine."""
        doubtful = [entry for entry in entries if entry.deaths >= _MOST_DEATHS]
        model_queue.retry_queue.extendleft(f for f in reversed(entries) if f.deaths < _MOST_DEATHS)
        if alone and doubtful:
            offender = doubtful[0]
            self.quarantine.add(offender.event_log.job)
            death.undo.append(partial(self.quarantine.remove, offender.event_log.job))
            log.error("request quarantined", model=model_queue.model, task=offender.id, cause=cause)
            model_queue.retry_queue.append(
                offender
            )  # so that it can be taken out like any that waits
            self.fail(offender, crashed(cause, quarantined=True))
            model_queue.clear_suspects()
            return offender.deaths
        if doubtful:
            model_queue.isolate(doubtful)
        return 0


def _with_results(worker: Worker, job: Job, event: protocol.JobEvent) -> protocol.JobEvent:
    """Take the files of a job that succeeded from its worker's folder, which ends with it."""
    if not isinstance(event, (protocol.ImageDone, protocol.SpeechDone)) or worker.folder is None:
        return event
    assert isinstance(job.work, protocol.ImageJob | protocol.SpeechJob)
    return take_results(event, worker.folder, Path(job.work.folder))
