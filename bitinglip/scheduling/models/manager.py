"""The model manager loads models on demand, within memory, and restarts workers that crash.

It alone writes the state of models. Whenever the facts have changed, it carries out a new plan of
the planner. The dispatcher asks it for replicas; the processes are the pool's.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

import structlog

from bitinglip import errors
from bitinglip.scheduling.models.deaths import AFTER_DEVICE_FAULT, Death, Deaths
from bitinglip.scheduling.models.demands import list_demands
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.hosting import Hosting
from bitinglip.scheduling.models.listener import ModelListener
from bitinglip.scheduling.models.loader import Pool, ReplicaLoader
from bitinglip.scheduling.models.plan_timer import PlanTimer
from bitinglip.scheduling.models.restarts import RestartBudget
from bitinglip.scheduling.models.state import ModelState, Replica
from bitinglip.scheduling.placement import planner
from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.ledger import Ledger, Reservation
from bitinglip.settings import Settings
from bitinglip.telemetry.metrics import Metrics
from model_store.page_cache import PageCache
from model_store.store import ModelStore
from workers.devices import DeviceUsage
from workers.faults import RAM
from workers.pool import StartFailed
from workers.worker import Worker

log = structlog.get_logger(__name__)

#: Builds the pool of workers and the listener around the manager, which they call back.
Connect = Callable[["ModelManager"], tuple[Pool, ModelListener]]


class ModelManager:
    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        facts: ResourceFacts,
        metrics: Metrics,
        connect: Connect,
        page_cache: PageCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``connect`` builds the two parts that the manager calls and that call it back."""
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self.clock = clock
        self.by_worker: dict[Worker, Replica] = {}
        self._unmet = False  #: requests wait for a model that is not loaded
        self._plan_timer = PlanTimer(self._plan, clock)
        rules = settings.residency
        self.rules = EvictionRules(min_residency=rules.min_seconds, patience=rules.patience)
        self._overdue = max(2.0, settings.workers.heartbeat_timeout / 4)
        self.hosting = Hosting(settings, store)
        self.facts, facts.lora_numbers = facts, self.hosting.lora_numbers
        self.deaths = Deaths(facts)
        self.models: dict[str, ModelState] = {}
        self.shortage = 0.0  #: missing memory for models with waiting requests, in parts of all
        self._pool, self._listener = connect(self)
        self._loader = ReplicaLoader(settings, store, self._pool, self, facts, page_cache)

    # ---- for the dispatcher --------------------------------------------------------------------

    def serving(self, name: str) -> list[Replica]:
        """List the model's replicas that take work now."""
        model_state = self.models.get(name)
        return model_state.serving if model_state else []

    def host(self, name: str) -> str:
        """Return the model whose workers run a model's requests; see ``Hosting``."""
        known = self.models.get(name)
        return name if known is not None and known.replicas else self.hosting.host(name)

    def check(self, name: str) -> None:
        """Raise UnknownModel, or ModelLoadFailed for a model that rests after its failures."""
        self.model_state(name).check(self.clock())

    def request_load(self, name: str) -> None:
        """Load the model, or more replicas of it, for a waiting request."""
        model_state = self.model_state(name)
        missing = self._settings.model(name).replicas - len(model_state.replicas)
        if missing > 0 or not (model_state.serving or model_state.loading):
            self.replan()

    def on_jobs_finished(self, name: str) -> None:
        """Stop empty draining replicas, or plan again, after jobs of the model have ended."""
        for replica in self.models[name].replicas.values():
            if replica.in_flight:
                continue
            if replica.state == "draining":
                self._stop(self.models[name], replica, "drained")
            elif self._unmet:
                self.replan()
            elif (kept := self._settings.keep_alive(name)) is not None:
                self._plan_timer.at(replica.used_at + kept)

    def free_memory_near(self, replica: Replica) -> None:
        """Evict idle models near a worker that ran out of memory."""
        self._raise_minimum(replica)
        self._evict_idle_near(replica)

    # ---- for operators -------------------------------------------------------------------------

    def preload(self, name: str) -> None:
        """Load a model although no request waits for it."""
        self.model_state(self.host(name)).asked = self.clock()
        self.replan()

    async def load(self, name: str) -> None:
        """Load a model, also one that was given up; return when it is ready.

        Raises what the load failed with, or ModelDoesNotFit.
        """
        model_state = self.model_state(self.host(name))
        if model_state.serving:
            return
        model_state.forget_failures()
        self._listener.clear_quarantine(name)
        self.preload(name)
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        model_state.watchers.append(outcome)
        await outcome

    async def unload(self, name: str) -> None:
        """Stop a model's workers and forget its failures. Raises ModelInUse if it has work."""
        model_state = self.models.get(name)
        if model_state is None:
            return
        if self.busy(name):
            raise errors.ModelInUse(
                "The model has requests in flight; wait for them or cancel them.", param="model"
            )
        model_state.target = 0
        self._pool.forget_model(name)
        self._unavailable(model_state, errors.ModelLoadFailed("The model was unloaded."))
        await self._end(model_state, "unloaded", *model_state.replicas.values())
        self._listener.clear_quarantine(name)
        # What came meanwhile, a request or a load, has it loaded again, by the same books.
        wanted = model_state.replicas or model_state.watchers or self.busy(name)
        if not wanted and self.models.get(name) is model_state:
            del self.models[name]

    async def stop_replica(self, replica: Replica) -> None:
        """Stop a replica; the last one takes its model along. Raises ModelInUse."""
        model_state = self.models[replica.model]
        if len(model_state.replicas) == 1:
            await self.unload(replica.model)
            return
        if replica.in_flight:
            raise errors.ModelInUse("The worker has requests in flight; drain it first.")
        model_state.target -= 1
        await self._end(model_state, "stopped on request", replica)

    def drain_replica(self, replica: Replica, reason: str) -> None:
        """Let a replica finish what it runs, then stop it, and do not replace it."""
        model_state = self.models[replica.model]
        model_state.target = max(0, model_state.target - 1)
        if replica.state != "ready":
            return
        log.info("draining", worker=replica.id, reason=reason, in_flight=replica.in_flight)
        replica.state = "draining"
        if replica.worker is not None:
            self._pool.drain(replica.worker)
        if replica.in_flight == 0:
            self._stop(model_state, replica, reason)

    def busy(self, name: str) -> int:
        """Count the model's running and waiting jobs."""
        return self._listener.busy(name)

    # ---- state ---------------------------------------------------------------------------------

    def refresh(self, sample: Mapping[str, DeviceUsage], pids: Mapping[str, int]) -> None:
        """Take over a sample of the devices and of the workers' heartbeats.

        Replicas whose heartbeat is overdue get nothing new, and other programs may have taken or
        freed memory.
        """
        self.deaths.refresh(self.clock())
        changed = self.facts.update(sample, self.replicas(), pids)
        for replica in self.replicas():
            replica.devices = self.facts.observe(self.models[replica.model].manifest, replica)
            if replica.worker is not None and replica.state == "ready":
                was_silent, replica.silent = replica.silent, replica.worker.silence > self._overdue
                if was_silent and not replica.silent:
                    self._listener.on_ready(replica.model)
        ledger = self.ledger()
        short = [device.id for device in ledger.devices if ledger.free(device.id) < 0]
        self.facts.use.note_short(short)
        self.facts.shared.tell(self.reservations(), self.facts.use.held, self.rules)
        if changed or self._unmet or short or any(d.elsewhere.leave for d in ledger.devices):
            self.replan()

    def model_state(self, name: str) -> ModelState:
        """Return the state of a model of the store. Raises UnknownModel."""
        if name not in self.models:
            workers = self._settings.workers
            budget = RestartBudget(workers.max_restarts, workers.restart_window)
            self.models[name] = ModelState(self._store.get(name), budget)
        known = self.models[name]
        if not known.replicas:  # it may have been updated since
            known.manifest = self._store.get(name)
        return known

    def replicas(self) -> Iterable[Replica]:
        return (each for model in self.models.values() for each in model.replicas.values())

    def _stop(self, model_state: ModelState, replica: Replica, cause: str) -> None:
        loading = replica.task if replica.state == "loading" else None
        replica.state = "stopping"
        replica.task = self._loader.stop(model_state, replica, cause, loading)

    async def _end(self, model_state: ModelState, cause: str, *replicas: Replica) -> None:
        """Stop replicas; return when their processes are gone."""
        for replica in replicas:
            if replica.state not in ("stopping", "stuck"):
                self._stop(model_state, replica, cause)
        stops = [replica.task for replica in replicas if replica.task is not None]
        await asyncio.gather(*stops, return_exceptions=True)

    # ---- plans ---------------------------------------------------------------------------------

    def replan(self) -> None:
        """Plan again soon, because the facts have changed."""
        self._plan_timer.soon()

    def ledger(self) -> Ledger:
        return Ledger(self.facts.capacities(), self.reservations())

    def reservations(self) -> list[Reservation]:
        waiting = {name: self._listener.waiting(name) for name in self.models}
        counts = {name: found.count for name, found in waiting.items() if found}
        return [self.facts.reservation(each, counts.get(each.model, 0)) for each in self.replicas()]

    def _plan(self) -> None:
        now = self.clock()
        ledger = self.ledger()
        usable = sum(device.usable for device in ledger.devices if not device.reason)
        demands = list_demands(
            self.models, self._settings, self.facts, self._listener, now, self._plan_timer.at
        )
        self._unmet = any(demand.urgent for demand in demands)
        found = planner.plan(ledger, demands, now, self.rules)
        self.shortage = min(1.0, found.missing_bytes / usable) if usable else 0.0
        self.facts.shared.planned(found)
        for load in found.loads:
            self._begin(self.models[load.model], load)
        for eviction in found.evictions:
            self._evict(eviction)
        for load in found.waiting:
            self._loader.keep_files(self.models[load.model].manifest)
        for refusal in found.refusals:
            self._refuse(self.models[refusal.model], forever=refusal.forever)
        if found.replan_at is not None:
            self._plan_timer.at(found.replan_at)

    def _begin(self, model_state: ModelState, load: planner.Load) -> None:
        replica = self.facts.new_replica(model_state, load)
        model_state.replicas[load.index] = replica
        log.info("loading", worker=replica.id, devices=list(load.devices))
        replica.task = self._loader.start(model_state, replica, self.facts.kind_of(replica))

    def _evict(self, eviction: planner.Evict) -> None:
        model, _, index = eviction.id.rpartition("/")
        self._metrics.evicted(model=model)
        self.drain_replica(self.models[model].replicas[int(index)], eviction.reason)

    def _refuse(self, model_state: ModelState, *, forever: bool) -> None:
        model_state.target = self.facts.refused_target(model_state)
        error = self.facts.does_not_fit(
            model_state.manifest, self.reservations(), self.rules, forever=forever
        )
        self._unavailable(model_state, error)

    def _unavailable(self, model_state: ModelState, error: errors.BitingLipError) -> None:
        """Fail all requests and callers that wait for this model."""
        model_state.asked = None
        model_state.tell_watchers(error)
        self._listener.on_unavailable(model_state.name, error)

    # ---- loads and losses ----------------------------------------------------------------------

    def on_progress(self, worker: Worker, fraction: float) -> None:
        for replica in self.replicas():
            if replica.id == worker.id and replica.state == "loading":
                replica.progressed(fraction, worker.copying, self.clock())

    def on_loaded(self, model_state: ModelState, replica: Replica, worker: Worker) -> None:
        assert worker.ready is not None
        model_state.loaded(replica, worker, worker.ready.slots, self.clock())
        self.by_worker[worker] = replica
        replica.devices = self.facts.observe(model_state.manifest, replica, loaded=True)
        seconds, source = round(replica.load_seconds, 3), model_state.loaded_from(replica)
        self._metrics.load_finished(model=model_state.name, seconds=seconds, source=source)
        rate = round(model_state.manifest.weight_bytes / 1e6 / max(seconds, 0.001))
        said = {"dtype": worker.ready.dtype, "seconds": seconds, "files": source}
        log.info("model ready", worker=replica.id, mb_per_s=rate, **said)
        model_state.tell_watchers()
        self._listener.on_ready(model_state.name)
        self.replan()

    def on_load_failed(self, model_state: ModelState, replica: Replica, why: StartFailed) -> None:
        log.warning("load failed", model=model_state.name, cause=why.message)
        self._metrics.load_finished(model=model_state.name, seconds=0.0, source=None)
        if replica.state != "stuck":
            model_state.remove(replica)
        self.replan()
        if replica.slept or self.facts.loads_wider(replica, why.fault):
            return  # the machine was suspended meanwhile, or float32 may help: once more
        now = self.clock()
        if self.deaths.load_failed(replica.devices, why.fault, now):
            model_state.retry_at = now + AFTER_DEVICE_FAULT
            return  # once more: there, or elsewhere once the device is in question
        if why.code == "OUT_OF_MEMORY":
            model_state.short_of_memory += 1
            late = model_state.short_of_memory == 1 and self.facts.use.wait_again(replica)
            if not late:
                self._raise_minimum(replica)
            if model_state.short_of_memory == 1:
                self._evict_idle_near(replica)
                return  # once more, with more room
        own = self._settings.model(model_state.name)
        others = len(model_state.serving) + len(model_state.loading)
        model_state.target = max(others, own.replicas if own.preload else 0)
        if model_state.serving or model_state.loading:
            return  # the others go on
        model_state.load_failed(why.message, now, hopeless=why.fault is RAM)
        self._unavailable(model_state, model_state.refusal(why.code, why.message, now))

    def on_displaced(self, model_state: ModelState, replica: Replica) -> None:
        """Plan again for a load that has not begun: others took its memory, or a disk is full."""
        log.info("load planned again: it has no room there now", worker=replica.id)
        model_state.remove(replica)
        self.replan()

    def on_stuck(self, model_state: ModelState, replica: Replica, worker: Worker) -> None:
        """Keep its memory reserved until the process ends after all."""
        replica.state, replica.worker, replica.task = "stuck", worker, None
        self.deaths.stuck(replica)
        self._loader.await_end(model_state, replica, worker)

    def on_gone(self, model_state: ModelState, replica: Replica) -> None:
        self.facts.use.expect_return(replica)
        self.deaths.gone(replica)
        model_state.remove(replica)
        if replica.worker is not None:
            self.by_worker.pop(replica.worker, None)
            self._loader.keep_files(model_state.manifest)
        self.replan()

    def on_lost(self, worker: Worker, cause: str, death: Death, *, forgiven: int) -> None:
        """Start another worker in place of one that has died; later if they die too often.

        ``forgiven``: deaths, this one among them, of a request that is not run again.
        """
        replica = self.by_worker.pop(worker)
        model_state = self.models[replica.model]
        if worker.stuck:
            self.on_stuck(model_state, replica, worker)
        else:
            self.facts.use.expect_return(replica)
            model_state.remove(replica)
        model_state.restarts += 1
        self._metrics.worker_restarted(model=model_state.name, reason=cause.split(" (")[0])
        log.warning("worker lost", worker=replica.id, cause=cause, blamed_on=death.blame)
        now = self.clock()
        if death.blame == "memory" and worker.fault is not RAM:
            self._raise_minimum(replica)
        if death.is_excused:
            model_state.retry_at = now + self.deaths.pause(model_state.name, now)
        elif death.blame == "request":
            death.undo.append(model_state.lost(f"Its worker {cause}.", now, forgiven=forgiven))
        if death.blame == "request" and (rest := model_state.rests(now)):
            log.error("model given up", model=model_state.name, cause=cause, seconds=rest)
            told = model_state.explain(now) or ""
            self._unavailable(model_state, model_state.refusal("MODEL_LOAD_FAILED", told, now))
        self.replan()

    def _raise_minimum(self, replica: Replica) -> None:
        """Plan with more memory for its model, unless another program took what was short."""
        if not self.facts.use.foreign_use_rose(replica):
            self.facts.raise_minimum(self.models[replica.model].manifest, replica)

    def _evict_idle_near(self, replica: Replica) -> None:
        for reservation in self.ledger().idle_on(replica.devices):
            if reservation.id != replica.id:
                self._evict(planner.Evict(reservation.id, f"room for {replica.model}"))

    async def close(self) -> None:
        self._plan_timer.close()
        await self._loader.close()
