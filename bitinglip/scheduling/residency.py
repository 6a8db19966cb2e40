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
from bitinglip.scheduling import placement
from bitinglip.scheduling.agenda import Agenda
from bitinglip.scheduling.fit import Room
from bitinglip.scheduling.ledger import Holding, Ledger
from bitinglip.scheduling.loads import Loads, Pool
from bitinglip.scheduling.replica import Replica, Resident
from bitinglip.scheduling.restarts import RestartBudget
from bitinglip.scheduling.survey import Survey
from bitinglip.scheduling.victims import Patience
from bitinglip.settings import Settings
from bitinglip.telemetry.metrics import Metrics
from model_store.page_cache import PageCache
from model_store.store import ModelStore
from workers.pool import StartFailed, Worker

log = structlog.get_logger(__name__)

ON_REQUEST = "was restarted on request"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Those who wait for a model."""

    count: int
    since: float  #: when the oldest came
    level: int


class Waiter(Protocol):
    """Who wants models' workers: the dispatcher."""

    def on_ready(self, model: str) -> None: ...
    def on_unavailable(self, model: str, error: errors.BitingLipError) -> None: ...
    def waiting(self, model: str) -> Waiting | None: ...
    def busy(self, model: str) -> int:
        """How many jobs of the model run or wait."""
        ...

    def forgive(self, model: str) -> None:
        """Let requests of the model out of quarantine."""
        ...


class Residency:
    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        pool: Pool,
        survey: Survey,
        metrics: Metrics,
        page_cache: PageCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._waiter: Waiter
        self._by_worker: dict[Worker, Replica] = {}
        self._unmet = False  #: somebody waits for a model that has no place
        self._agenda = Agenda(self._plan, clock)
        rules = settings.residency
        self._patience = Patience(min_residency=rules.min_seconds, patience=rules.patience)
        self.survey = survey
        self.models: dict[str, Resident] = {}
        self.shortage = 0.0  #: memory missing for models somebody waits for, in parts of all
        self.loads = Loads(settings, store, pool, self, survey.wish, page_cache)

    def attach(self, waiter: Waiter) -> None:
        self._waiter = waiter

    # ---- what the dispatcher asks --------------------------------------------------------------

    def serving(self, name: str) -> list[Replica]:
        """The model's replicas that take work now."""
        resident = self.models.get(name)
        return resident.serving if resident else []

    def check(self, name: str) -> None:
        """Raises UnknownModel, or ModelLoadFailed for a model that was given up."""
        resident = self.resident(name)
        if resident.given_up:
            raise errors.ModelLoadFailed(
                f"The model is out of service: {resident.cause} Load it again to retry.",
                param="model",
                details={"model": name},
            )

    def want(self, name: str) -> None:
        """Somebody waits for the model: see to it that it gets loaded."""
        resident = self.resident(name)
        missing = self._settings.model(name).replicas - len(resident.replicas)
        if missing > 0 or not (resident.serving or resident.loading):
            self.replan()

    def worked(self, name: str) -> None:
        """Jobs of the model have ended; a replica may be empty now."""
        for replica in self.models[name].replicas.values():
            if replica.in_flight:
                continue
            if replica.state == "draining":
                self.loads.stop(self.models[name], replica, "drained")
            elif self._unmet:
                self.replan()
            elif (kept := self._settings.keep_alive(name)) is not None:
                self._agenda.at(replica.used_at + kept)

    def replica_of(self, worker: Worker) -> Replica | None:
        return self._by_worker.get(worker)

    def load_eta(self, name: str) -> float | None:
        """Seconds until the model is loaded; None if nothing is known of it, or no load runs."""
        resident = self.models.get(name)
        if resident is None or not resident.loading:
            return None
        now, left = self._clock(), []
        for replica in resident.loading:
            passed = now - replica.began
            if replica.progress > 0.05:
                left.append(passed / replica.progress * (1 - replica.progress))
            elif resident.load_seconds is not None:
                left.append(max(0.0, resident.load_seconds - passed))
        return round(min(left), 3) if left else None

    def relieve(self, replica: Replica) -> None:
        """A worker ran out of memory: models beside it that nobody uses leave."""
        resident = self.models[replica.model]
        self.survey.raise_floor(resident.manifest, replica)
        self._evict_idle_beside(replica)

    def more_room(self, name: str) -> list[dict[str, object]]:
        """Settings under which the model's requests would have more memory."""
        return self.survey.more_room(self.resident(name).manifest)

    # ---- models --------------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock()

    def busy(self, name: str) -> int:
        return self._waiter.busy(name)

    def forgive(self, name: str) -> None:
        self._waiter.forgive(name)

    def look(self, overdue: float) -> None:
        """Take a look around: replicas that have been silent for so long get nothing new, and
        somebody may have taken memory, or given it back."""
        silent_since = self._clock() - overdue
        for replica in self.replicas():
            if replica.worker is not None and replica.state == "ready":
                was_silent, replica.silent = replica.silent, replica.worker.heard < silent_since
                if was_silent and not replica.silent:
                    self._waiter.on_ready(replica.model)
        ledger = self.ledger()
        if self._unmet or any(ledger.free(device.id) < 0 for device in ledger.devices):
            self.replan()

    def resident(self, name: str) -> Resident:
        """The state of a model of the store. Raises UnknownModel."""
        if name not in self.models:
            workers = self._settings.workers
            budget = RestartBudget(workers.max_restarts, workers.restart_window)
            self.models[name] = Resident(self._store.get(name), budget)
        return self.models[name]

    def replicas(self) -> Iterable[Replica]:
        return (each for model in self.models.values() for each in model.replicas.values())

    def drain(self, resident: Resident, replica: Replica, reason: str) -> None:
        """Let a replica finish what it runs, then stop it."""
        if replica.state != "ready":
            return
        log.info("draining", worker=replica.id, reason=reason, in_flight=replica.in_flight)
        replica.state = "draining"
        if replica.worker is not None:
            replica.worker.state = "draining"
        if replica.in_flight == 0:
            self.loads.stop(resident, replica, reason)

    # ---- plans ---------------------------------------------------------------------------------

    def replan(self) -> None:
        """Something has changed: look at everything again, soon."""
        self._agenda.soon()

    def ledger(self) -> Ledger:
        return Ledger(self.survey.rooms(), self.holdings())

    def rooms(self) -> list[Room]:
        """Each device with what is free on it and what could leave it."""
        ledger = self.ledger()
        return self.survey.fit_rooms(ledger.holdings, ledger.free)

    def holdings(self) -> list[Holding]:
        counts = {name: self._waiter.waiting(name) for name in self.models}
        waiting = {name: found.count if found else 0 for name, found in counts.items()}
        return [self.survey.holding(each, waiting[each.model]) for each in self.replicas()]

    def _plan(self) -> None:
        now = self._clock()
        ledger = self.ledger()
        usable = sum(room.usable for room in ledger.devices)
        found = placement.plan(ledger, self._demands(now), now, self._patience)
        self.shortage = min(1.0, found.short / usable) if usable else 0.0
        for load in found.loads:
            self._begin(self.models[load.model], load)
        for eviction in found.evictions:
            self._evict(eviction)
        for model in found.waiting:
            self.loads.keep_files(self.models[model].manifest)
        for refusal in found.refusals:
            self._refuse(self.models[refusal.model], forever=refusal.forever)
        if found.look_again is not None:
            self._agenda.at(found.look_again)

    def _demands(self, now: float) -> list[placement.Demand]:
        demands: list[placement.Demand] = []
        self._unmet = False
        for resident in self.models.values():
            waiting = self._waiter.waiting(resident.name)
            since = waiting.since if waiting else resident.asked
            if since is not None:
                resident.target = self._settings.model(resident.name).replicas
            if resident.given_up or not resident.target:
                continue
            if resident.retry_at > now:
                self._agenda.at(resident.retry_at)
                continue
            level = waiting.level if waiting else 0
            found = self.survey.demands(resident, since, level)
            self._unmet = self._unmet or any(demand.urgent for demand in found)
            demands += found
        return demands

    def _begin(self, resident: Resident, load: placement.Load) -> None:
        replica = Replica(resident.name, load.index, load.devices, self._clock())
        resident.replicas[load.index] = replica
        kind = self.survey.kind_of(replica)
        replica.load_seconds = self.survey.load_seconds(resident, kind)
        log.info("loading", worker=replica.id, devices=list(load.devices))
        self.loads.start(resident, replica, kind)

    def _evict(self, eviction: placement.Evict) -> None:
        model, _, index = eviction.id.rpartition("/")
        resident = self.models[model]
        resident.target = max(0, resident.target - 1)
        self._metrics.evicted(model=model)
        self.drain(resident, resident.replicas[int(index)], eviction.reason)

    def _refuse(self, resident: Resident, *, forever: bool) -> None:
        resident.target = len(resident.serving)
        error = self.survey.does_not_fit(resident.manifest, self.rooms(), forever=forever)
        self.unavailable(resident, error)

    def unavailable(self, resident: Resident, error: errors.BitingLipError) -> None:
        """Nobody waits for this model in vain."""
        resident.asked = None
        for watcher in resident.watchers:
            if not watcher.done():
                watcher.set_exception(error)
        resident.watchers.clear()
        self._waiter.on_unavailable(resident.name, error)

    # ---- loads and losses ----------------------------------------------------------------------

    def on_progress(self, worker: Worker, fraction: float) -> None:
        for replica in self.replicas():
            if replica.id == worker.id and replica.state == "loading":
                replica.progress = fraction

    def on_loaded(self, resident: Resident, replica: Replica) -> None:
        worker, now = replica.worker, self._clock()
        assert worker is not None
        assert worker.ready is not None
        replica.state, replica.progress, replica.slots = "ready", 1.0, worker.ready.slots
        replica.loaded_at = replica.used_at = now
        replica.load_seconds = resident.load_seconds = now - replica.began
        resident.cause, resident.failed, resident.asked = None, False, None
        resident.short_of_memory = 0
        resident.loads += 1
        self._by_worker[worker] = replica
        self.survey.observe(resident.manifest, replica, loaded=True)
        self._metrics.load_finished(model=resident.name, seconds=replica.load_seconds, ok=True)
        log.info(
            "model ready",
            worker=replica.id,
            dtype=worker.ready.dtype,
            seconds=round(replica.load_seconds, 3),
        )
        for watcher in resident.watchers:
            if not watcher.done():
                watcher.set_result(None)
        resident.watchers.clear()
        self._waiter.on_ready(resident.name)
        self.replan()

    def on_load_failed(self, resident: Resident, replica: Replica, why: StartFailed) -> None:
        log.warning("load failed", model=resident.name, cause=why.message)
        self._metrics.load_finished(model=resident.name, seconds=0.0, ok=False)
        del resident.replicas[replica.index]
        self.replan()
        if why.code == "OUT_OF_MEMORY":
            self.survey.raise_floor(resident.manifest, replica)
            resident.short_of_memory += 1
            if resident.short_of_memory == 1:
                self._evict_idle_beside(replica)
                return  # once more, with more room
        now = self._clock()
        resident.target = len(resident.serving) + len(resident.loading)
        if resident.serving or resident.loading:
            return  # the others go on
        resident.cause, resident.failed = why.message, True
        resident.given_up = not resident.budget.spend(now)
        resident.retry_at = now + resident.budget.pause(now)
        details = {"model": resident.name}
        error = errors.from_code(why.code, why.message, param="model", details=details)
        self.unavailable(resident, error)

    def on_gone(self, resident: Resident, replica: Replica) -> None:
        if resident.replicas.get(replica.index) is replica:
            del resident.replicas[replica.index]
        if replica.worker is not None:
            self._by_worker.pop(replica.worker, None)
            self.loads.keep_files(resident.manifest)
        self.replan()

    def on_lost(self, worker: Worker, cause: str) -> None:
        """A ready worker has died: start another, unless it dies too often."""
        replica = self._by_worker.pop(worker, None)
        if replica is None:
            return
        resident = self.models[replica.model]
        if resident.replicas.get(replica.index) is replica:
            del resident.replicas[replica.index]
        resident.restarts += 1
        self._metrics.worker_restarted(model=resident.name, reason=cause.split(" (")[0])
        log.warning("worker lost", worker=replica.id, cause=cause)
        now = self._clock()
        # What an operator asked for is no failure of the model's.
        if cause != ON_REQUEST and not resident.budget.spend(now):
            self._give_up(resident, f"Its worker {cause}.")
        resident.retry_at = now + resident.budget.pause(now)
        self.replan()

    def _give_up(self, resident: Resident, cause: str) -> None:
        resident.cause, resident.given_up, resident.target = cause, True, 0
        log.error("model given up", model=resident.name, cause=cause)
        self.unavailable(resident, errors.ModelLoadFailed(cause, param="model"))

    def _evict_idle_beside(self, replica: Replica) -> None:
        for holding in self.holdings():
            beside = holding.id != replica.id and set(holding.devices) & set(replica.devices)
            if beside and holding.idle and not holding.pinned:
                self._evict(placement.Evict(holding.id, f"room for {replica.model}"))

    async def close(self) -> None:
        self._agenda.close()
        await self.loads.close()
