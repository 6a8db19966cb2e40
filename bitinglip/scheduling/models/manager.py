"""Which models are loaded, and where: on demand, within memory, restarted when they crash.

One owner of each model's state. It gathers the facts, asks ``placement`` for a plan whenever they
have changed, and carries the plan out. The dispatcher asks for replicas and is told of them;
processes are the pool's affair.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import structlog

from bitinglip import errors
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.loader import Pool, ReplicaLoader
from bitinglip.scheduling.models.plan_timer import PlanTimer
from bitinglip.scheduling.models.restarts import RestartBudget
from bitinglip.scheduling.models.state import ModelState, Replica
from bitinglip.scheduling.placement import planner
from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.fit import Room
from bitinglip.scheduling.placement.ledger import Ledger, Reservation
from bitinglip.settings import Settings
from bitinglip.telemetry.metrics import Metrics
from model_store.page_cache import PageCache
from model_store.store import ModelStore
from workers.pool import StartFailed, Worker

log = structlog.get_logger(__name__)

RESTARTED_BY_OPERATOR = "was restarted on request"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Those who wait for a model."""

    count: int
    since: float  #: when the oldest came
    level: int


class ModelListener(Protocol):
    """Who wants models' workers: the dispatcher."""

    def on_ready(self, model: str) -> None: ...
    def on_unavailable(self, model: str, error: errors.BitingLipError) -> None: ...
    def waiting(self, model: str) -> Waiting | None: ...
    def busy(self, model: str) -> int:
        """How many jobs of the model run or wait."""
        ...

    def clear_quarantine(self, model: str) -> None:
        """Let requests of the model out of quarantine."""
        ...


class ModelManager:
    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        pool: Pool,
        facts: ResourceFacts,
        metrics: Metrics,
        page_cache: PageCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._listener: ModelListener
        self._by_worker: dict[Worker, Replica] = {}
        self._unmet = False  #: somebody waits for a model that has no place
        self._plan_timer = PlanTimer(self._plan, clock)
        rules = settings.residency
        self._patience = EvictionRules(min_residency=rules.min_seconds, patience=rules.patience)
        self.facts = facts
        self.models: dict[str, ModelState] = {}
        self.shortage = 0.0  #: memory missing for models somebody waits for, in parts of all
        self.loads = ReplicaLoader(settings, store, pool, self, facts.load_config, page_cache)

    def attach(self, waiter: ModelListener) -> None:
        self._listener = waiter

    # ---- what the dispatcher asks --------------------------------------------------------------

    def serving(self, name: str) -> list[Replica]:
        """The model's replicas that take work now."""
        model_state = self.models.get(name)
        return model_state.serving if model_state else []

    def check(self, name: str) -> None:
        """Raises UnknownModel, or ModelLoadFailed for a model that was given up."""
        model_state = self.model_state(name)
        if model_state.given_up:
            raise errors.ModelLoadFailed(
                f"The model is out of service: {model_state.cause} Load it again to retry.",
                param="model",
                details={"model": name},
            )

    def want(self, name: str) -> None:
        """Somebody waits for the model: see to it that it gets loaded."""
        model_state = self.model_state(name)
        missing = self._settings.model(name).replicas - len(model_state.replicas)
        if missing > 0 or not (model_state.serving or model_state.loading):
            self.replan()

    def on_jobs_finished(self, name: str) -> None:
        """Jobs of the model have ended; a replica may be empty now."""
        for replica in self.models[name].replicas.values():
            if replica.in_flight:
                continue
            if replica.state == "draining":
                self.loads.stop(self.models[name], replica, "drained")
            elif self._unmet:
                self.replan()
            elif (kept := self._settings.keep_alive(name)) is not None:
                self._plan_timer.at(replica.used_at + kept)

    def replica_of(self, worker: Worker) -> Replica | None:
        return self._by_worker.get(worker)

    def load_eta(self, name: str) -> float | None:
        """Seconds until the model is loaded; None if nothing is known of it, or no load runs."""
        model_state = self.models.get(name)
        if model_state is None or not model_state.loading:
            return None
        now, left = self._clock(), []
        for replica in model_state.loading:
            passed = now - replica.began
            if replica.progress > 0.05:
                left.append(passed / replica.progress * (1 - replica.progress))
            elif model_state.load_seconds is not None:
                left.append(max(0.0, model_state.load_seconds - passed))
        return round(min(left), 3) if left else None

    def free_memory_near(self, replica: Replica) -> None:
        """A worker ran out of memory: models beside it that nobody uses leave."""
        model_state = self.models[replica.model]
        self.facts.raise_minimum(model_state.manifest, replica)
        self._evict_idle_beside(replica)

    def memory_suggestions(self, name: str) -> list[dict[str, object]]:
        """Settings under which the model's requests would have more memory."""
        return self.facts.memory_suggestions(self.model_state(name).manifest)

    # ---- models --------------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock()

    def busy(self, name: str) -> int:
        return self._listener.busy(name)

    def clear_quarantine(self, name: str) -> None:
        self._listener.clear_quarantine(name)

    def look(self, overdue: float) -> None:
        """Take a look around: replicas that have been silent for so long get nothing new, and
        somebody may have taken memory, or given it back."""
        silent_since = self._clock() - overdue
        for replica in self.replicas():
            if replica.worker is not None and replica.state == "ready":
                was_silent, replica.silent = replica.silent, replica.worker.last_seen < silent_since
                if was_silent and not replica.silent:
                    self._listener.on_ready(replica.model)
        ledger = self.ledger()
        if self._unmet or any(ledger.free(device.id) < 0 for device in ledger.devices):
            self.replan()

    def model_state(self, name: str) -> ModelState:
        """The state of a model of the store. Raises UnknownModel."""
        if name not in self.models:
            workers = self._settings.workers
            budget = RestartBudget(workers.max_restarts, workers.restart_window)
            self.models[name] = ModelState(self._store.get(name), budget)
        return self.models[name]

    def replicas(self) -> Iterable[Replica]:
        return (each for model in self.models.values() for each in model.replicas.values())

    def drain(self, model_state: ModelState, replica: Replica, reason: str) -> None:
        """Let a replica finish what it runs, then stop it."""
        if replica.state != "ready":
            return
        log.info("draining", worker=replica.id, reason=reason, in_flight=replica.in_flight)
        replica.state = "draining"
        if replica.worker is not None:
            replica.worker.state = "draining"
        if replica.in_flight == 0:
            self.loads.stop(model_state, replica, reason)

    # ---- plans ---------------------------------------------------------------------------------

    def replan(self) -> None:
        """Something has changed: look at everything again, soon."""
        self._plan_timer.soon()

    def ledger(self) -> Ledger:
        return Ledger(self.facts.rooms(), self.reservations())

    def rooms(self) -> list[Room]:
        """Each device with what is free on it and what could leave it."""
        ledger = self.ledger()
        return self.facts.fit_rooms(ledger.reservations, ledger.free)

    def reservations(self) -> list[Reservation]:
        counts = {name: self._listener.waiting(name) for name in self.models}
        waiting = {name: found.count if found else 0 for name, found in counts.items()}
        return [self.facts.reservation(each, waiting[each.model]) for each in self.replicas()]

    def _plan(self) -> None:
        now = self._clock()
        ledger = self.ledger()
        usable = sum(room.usable for room in ledger.devices)
        found = planner.plan(ledger, self._demands(now), now, self._patience)
        self.shortage = min(1.0, found.short / usable) if usable else 0.0
        for load in found.loads:
            self._begin(self.models[load.model], load)
        for eviction in found.evictions:
            self._evict(eviction)
        for model in found.waiting:
            self.loads.keep_files(self.models[model].manifest)
        for refusal in found.refusals:
            self._refuse(self.models[refusal.model], forever=refusal.forever)
        if found.replan_at is not None:
            self._plan_timer.at(found.replan_at)

    def _demands(self, now: float) -> list[planner.Demand]:
        demands: list[planner.Demand] = []
        self._unmet = False
        for model_state in self.models.values():
            waiting = self._listener.waiting(model_state.name)
            since = waiting.since if waiting else model_state.asked
            if since is not None:
                model_state.target = self._settings.model(model_state.name).replicas
            if model_state.given_up or not model_state.target:
                continue
            if model_state.retry_at > now:
                self._plan_timer.at(model_state.retry_at)
                continue
            level = waiting.level if waiting else 0
            found = self.facts.demands(model_state, since, level)
            self._unmet = self._unmet or any(demand.urgent for demand in found)
            demands += found
        return demands

    def _begin(self, model_state: ModelState, load: planner.Load) -> None:
        replica = Replica(model_state.name, load.index, load.devices, self._clock())
        model_state.replicas[load.index] = replica
        kind = self.facts.kind_of(replica)
        replica.load_seconds = self.facts.load_seconds(model_state, kind)
        log.info("loading", worker=replica.id, devices=list(load.devices))
        self.loads.start(model_state, replica, kind)

    def _evict(self, eviction: planner.Evict) -> None:
        model, _, index = eviction.id.rpartition("/")
        model_state = self.models[model]
        model_state.target = max(0, model_state.target - 1)
        self._metrics.evicted(model=model)
        self.drain(model_state, model_state.replicas[int(index)], eviction.reason)

    def _refuse(self, model_state: ModelState, *, forever: bool) -> None:
        model_state.target = len(model_state.serving)
        error = self.facts.does_not_fit(model_state.manifest, self.rooms(), forever=forever)
        self.unavailable(model_state, error)

    def unavailable(self, model_state: ModelState, error: errors.BitingLipError) -> None:
        """Nobody waits for this model in vain."""
        model_state.asked = None
        for watcher in model_state.watchers:
            if not watcher.done():
                watcher.set_exception(error)
        model_state.watchers.clear()
        self._listener.on_unavailable(model_state.name, error)

    # ---- loads and losses ----------------------------------------------------------------------

    def on_progress(self, worker: Worker, fraction: float) -> None:
        for replica in self.replicas():
            if replica.id == worker.id and replica.state == "loading":
                replica.progress = fraction

    def on_loaded(self, model_state: ModelState, replica: Replica) -> None:
        worker, now = replica.worker, self._clock()
        assert worker is not None
        assert worker.ready is not None
        replica.state, replica.progress, replica.slots = "ready", 1.0, worker.ready.slots
        replica.loaded_at = replica.used_at = now
        replica.load_seconds = model_state.load_seconds = now - replica.began
        model_state.cause, model_state.failed, model_state.asked = None, False, None
        model_state.short_of_memory = 0
        model_state.loads += 1
        self._by_worker[worker] = replica
        self.facts.observe(model_state.manifest, replica, loaded=True)
        self._metrics.load_finished(model=model_state.name, seconds=replica.load_seconds, ok=True)
        log.info(
            "model ready",
            worker=replica.id,
            dtype=worker.ready.dtype,
            seconds=round(replica.load_seconds, 3),
        )
        for watcher in model_state.watchers:
            if not watcher.done():
                watcher.set_result(None)
        model_state.watchers.clear()
        self._listener.on_ready(model_state.name)
        self.replan()

    def on_load_failed(self, model_state: ModelState, replica: Replica, why: StartFailed) -> None:
        log.warning("load failed", model=model_state.name, cause=why.message)
        self._metrics.load_finished(model=model_state.name, seconds=0.0, ok=False)
        del model_state.replicas[replica.index]
        self.replan()
        if why.code == "OUT_OF_MEMORY":
            self.facts.raise_minimum(model_state.manifest, replica)
            model_state.short_of_memory += 1
            if model_state.short_of_memory == 1:
                self._evict_idle_beside(replica)
                return  # once more, with more room
        now = self._clock()
        model_state.target = len(model_state.serving) + len(model_state.loading)
        if model_state.serving or model_state.loading:
            return  # the others go on
        model_state.cause, model_state.failed = why.message, True
        model_state.given_up = not model_state.budget.spend(now)
        model_state.retry_at = now + model_state.budget.pause(now)
        details = {"model": model_state.name}
        error = errors.from_code(why.code, why.message, param="model", details=details)
        self.unavailable(model_state, error)

    def on_gone(self, model_state: ModelState, replica: Replica) -> None:
        if model_state.replicas.get(replica.index) is replica:
            del model_state.replicas[replica.index]
        if replica.worker is not None:
            self._by_worker.pop(replica.worker, None)
            self.loads.keep_files(model_state.manifest)
        self.replan()

    def on_lost(self, worker: Worker, cause: str) -> None:
        """A ready worker has died: start another, unless it dies too often."""
        replica = self._by_worker.pop(worker, None)
        if replica is None:
            return
        model_state = self.models[replica.model]
        if model_state.replicas.get(replica.index) is replica:
            del model_state.replicas[replica.index]
        model_state.restarts += 1
        self._metrics.worker_restarted(model=model_state.name, reason=cause.split(" (")[0])
        log.warning("worker lost", worker=replica.id, cause=cause)
        now = self._clock()
        # What an operator asked for is no failure of the model's.
        if cause != RESTARTED_BY_OPERATOR and not model_state.budget.spend(now):
            self._give_up(model_state, f"Its worker {cause}.")
        model_state.retry_at = now + model_state.budget.pause(now)
        self.replan()

    def _give_up(self, model_state: ModelState, cause: str) -> None:
        model_state.cause, model_state.given_up, model_state.target = cause, True, 0
        log.error("model given up", model=model_state.name, cause=cause)
        self.unavailable(model_state, errors.ModelLoadFailed(cause, param="model"))

    def _evict_idle_beside(self, replica: Replica) -> None:
        for reservation in self.reservations():
            beside = reservation.id != replica.id and set(reservation.devices) & set(
                replica.devices
            )
            if beside and reservation.idle and not reservation.pinned:
                self._evict(planner.Evict(reservation.id, f"room for {replica.model}"))

    async def close(self) -> None:
        self._plan_timer.close()
        await self.loads.close()
