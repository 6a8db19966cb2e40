"""Which models are loaded: on demand, shared by all who wait, restarted when they crash.

One owner of each model's state. The dispatcher asks for workers and is told of them; processes
are the pool's affair.
"""

import asyncio
import contextvars
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from bitinglip import errors
from bitinglip.scheduling.restarts import RestartBudget
from bitinglip.settings import Settings
from bitinglip.telemetry.metrics import Metrics
from model_store.errors import StoreError
from model_store.manifest import Manifest
from model_store.store import ModelStore
from workers import protocol
from workers.devices import Device, cuda_devices
from workers.pool import StartFailed, Worker, WorkerPool

log = structlog.get_logger(__name__)

_ON_REQUEST = "was restarted on request"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as clients see it."""

    id: str
    pid: int
    model: str | None
    kind: str | None
    devices: list[str]
    state: str
    in_flight: int
    restarts: int
    memory_bytes: int
    started_at: datetime
    last_heartbeat: datetime | None
    cause: str | None


class Waiter(Protocol):
    """Who wants a model's worker: the dispatcher."""

    def on_ready(self, model: str, worker: Worker) -> None: ...
    def on_unavailable(self, model: str, error: errors.BitingLipError) -> None: ...
    def busy(self, model: str) -> int:
        """How many jobs of the model run or wait."""
        ...


class Resident:
    """One model's state: available, loading, ready or error."""

    def __init__(self, name: str, budget: RestartBudget) -> None:
        self.name = name
        self.budget = budget
        self.status = "available"
        self.cause: str | None = None
        self.worker: Worker | None = None
        self.loading: asyncio.Task[Worker] | None = None
        self.restarts = 0
        self.given_up = False


class Residency:
    def __init__(
        self, settings: Settings, store: ModelStore, pool: WorkerPool, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        self._metrics = metrics
        self._models: dict[str, Resident] = {}
        self._waiter: Waiter | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False
        self.settled = False  #: the store has its first models; what readiness waits for

    def attach(self, waiter: Waiter) -> None:
        self._waiter = waiter

    # ---- what the dispatcher asks --------------------------------------------------------------

    def worker(self, name: str) -> Worker | None:
        """The model's worker if it can take jobs now."""
        resident = self._models.get(name)
        return resident.worker if resident else None

    def want(self, name: str) -> None:
        """See to it that the model gets loaded. Raises if it was given up."""
        resident = self._resident(name)
        if resident.given_up:
            raise errors.ModelLoadFailed(
                f"The model is out of service: {resident.cause} Load it again to retry.",
                param="model",
                details={"model": name},
            )
        if resident.worker is None and resident.loading is None:
            self._begin(resident)

    # ---- what operators ask --------------------------------------------------------------------

    def status(self, name: str) -> str:
        resident = self._models.get(name)
        return resident.status if resident else "available"

    def cause(self, name: str) -> str | None:
        resident = self._models.get(name)
        return resident.cause if resident else None

    def ready(self, name: str) -> protocol.Ready | None:
        """What the loaded model really has: context and number format may not be its files'."""
        worker = self.worker(name)
        return worker.ready if worker else None

    async def load(self, name: str) -> None:
        """Load a model now, also one that was given up. Raises what the load failed with."""
        resident = self._resident(name)
        if resident.worker is not None:
            return
        resident.given_up = False
        resident.budget.reset()
        if resident.loading is None:
            self._begin(resident)
        assert resident.loading is not None
        try:
            await asyncio.shield(resident.loading)
        except StartFailed as failure:
            raise errors.from_code(failure.code, failure.message, param="model") from failure

    async def unload(self, name: str) -> None:
        """Stop a model's worker and forget its failures. Raises ModelInUse if it has work."""
        self._store.get(name)
        resident = self._models.get(name)
        if resident is None:
            return
        if self._waiter and self._waiter.busy(name):
            raise errors.ModelInUse(
                "The model has requests in flight; wait for them or cancel them.", param="model"
            )
        worker, loading = resident.worker, resident.loading
        del self._models[name]
        if loading is not None:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        if worker is not None:
            await self._pool.stop(worker, "unloaded")

    def workers(self) -> list[WorkerView]:
        return [self._view(worker) for worker in self._pool.workers]

    async def restart_worker(self, worker_id: str) -> None:
        """Replace a model's worker; its unstreamed requests are run again on the new one."""
        worker = self._find(worker_id)
        worker.cause = _ON_REQUEST
        worker.handle.kill()
        await worker.ended.wait()

    async def stop_worker(self, worker_id: str) -> None:
        """Stop a worker for good (until its model is asked for again)."""
        worker = self._find(worker_id)
        if worker.spec is not None:
            await self.unload(worker.spec.model)
        else:
            await self._pool.stop(worker)

    def open(self) -> None:
        """Begin the loads that the settings ask for, and warm the spare."""
        self.settled = True
        for name in self._store.names():
            if self._settings.model(name).preload:
                self.want(name)
        self._pool.warm_spare()

    async def watch(self) -> None:
        """Kill silent workers, for as long as the server runs."""
        await self._pool.watch()

    def states(self) -> Mapping[str, int]:
        """How many workers are in which state."""
        return Counter(self._view(worker).state for worker in self._pool.workers)

    async def close(self) -> None:
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.close()

    # ---- loads and losses ----------------------------------------------------------------------

    def on_lost(self, worker: Worker, cause: str) -> None:
        """A ready worker has died: start another, unless it dies too often."""
        resident = self._models.get(worker.spec.model) if worker.spec else None
        if resident is None or resident.worker is not worker:
            return
        resident.worker = None
        resident.restarts += 1
        self._metrics.worker_restarted(model=resident.name, reason=cause.split(" (")[0])
        log.warning("worker lost", model=resident.name, worker=worker.id, cause=cause)
        if self._closed:
            return
        # What an operator asked for is no failure of the model's.
        if cause == _ON_REQUEST or resident.budget.spend(time.monotonic()):
            self._begin(resident)
        else:
            self._give_up(resident, f"Its worker {cause}.")

    def _give_up(self, resident: Resident, cause: str) -> None:
        resident.status, resident.cause, resident.given_up = "error", cause, True
        log.error("model given up", model=resident.name, cause=cause)
        self._tell_unavailable(resident.name, errors.ModelLoadFailed(cause, param="model"))

    def _begin(self, resident: Resident) -> None:
        resident.status = "loading"
        # In a context of its own: what the worker does later is not the affair of this request.
        task = asyncio.create_task(
            self._load(resident), name=f"load {resident.name}", context=contextvars.Context()
        )
        resident.loading = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # The outcome is told to the waiter in _load; whoever awaits the task gets it too.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _load(self, resident: Resident) -> Worker:
        began = time.monotonic()
        try:
            worker = await self._start(resident)
        except StartFailed as failure:
            self._load_failed(resident, failure, time.monotonic() - began)
            raise
        resident.loading, resident.worker = None, worker
        resident.status, resident.cause = "ready", None
        seconds = time.monotonic() - began
        self._metrics.load_finished(model=resident.name, seconds=seconds, ok=True)
        dtype = worker.ready.dtype if worker.ready else None
        log.info("model ready", model=resident.name, dtype=dtype, seconds=round(seconds, 3))
        self._pool.warm_spare()
        if self._waiter:
            self._waiter.on_ready(resident.name, worker)
        return worker

    async def _start(self, resident: Resident) -> Worker:
        """A worker of the model, or StartFailed, whatever went wrong: somebody waits for it."""
        try:
            await asyncio.sleep(resident.budget.pause(time.monotonic()))
            manifest = self._store.get(resident.name)
            spec = self._spec(manifest, await asyncio.to_thread(cuda_devices))
            return await self._pool.start(f"{resident.name}/0", spec)
        except StartFailed:
            raise
        except StoreError as error:
            raise StartFailed(error.code, error.message) from error
        except Exception as error:  # the edge of the load's task: no exception may end it unheard
            log.exception("no worker could be started", model=resident.name)
            raise StartFailed("MODEL_LOAD_FAILED", "No worker could be started.") from error

    def _load_failed(self, resident: Resident, failure: StartFailed, seconds: float) -> None:
        log.warning("load failed", model=resident.name, cause=failure.message)
        self._metrics.load_finished(model=resident.name, seconds=seconds, ok=False)
        resident.loading = None
        resident.status, resident.cause = "error", failure.message
        resident.given_up = not resident.budget.spend(time.monotonic())
        details = {"model": resident.name}
        self._tell_unavailable(
            resident.name,
            errors.from_code(failure.code, failure.message, param="model", details=details),
        )

    def _tell_unavailable(self, name: str, error: errors.BitingLipError) -> None:
        if self._waiter:
            self._waiter.on_unavailable(name, error)

    def _spec(self, manifest: Manifest, cards: Sequence[Device]) -> protocol.Load:
        own = self._settings.model(manifest.name)
        device = own.device or ("cuda" if cards else "cpu")
        return protocol.Load(
            model=manifest.name,
            engine=own.engine or manifest.engine,
            path=str(self._store.path(manifest.name)),
            device=device,
            visible_devices=cards[0].id if cards and device == "cuda" else "",
            dtype=own.dtype,
            max_context=own.max_context,
            kv_cache_bytes=own.kv_cache_bytes,
            max_batch=own.max_batch,
            threads=self._settings.workers.threads,
            heartbeat_seconds=min(1.0, self._settings.workers.heartbeat_timeout / 4),
            fake=protocol.FakeOptions(**own.fake.model_dump()),
        )

    def _resident(self, name: str) -> Resident:
        if name not in self._models:
            self._store.get(name)
            workers = self._settings.workers
            budget = RestartBudget(workers.max_restarts, workers.restart_window)
            self._models[name] = Resident(name, budget)
        return self._models[name]

    def _find(self, worker_id: str) -> Worker:
        for worker in self._pool.workers:
            if worker.id == worker_id:
                return worker
        raise errors.WorkerNotFound(details={"worker": worker_id})

    def _view(self, worker: Worker) -> WorkerView:
        spec, ready, beat = worker.spec, worker.ready, worker.heartbeat
        resident = self._models.get(spec.model) if spec else None
        in_flight = beat.in_flight if beat else 0
        state = worker.state
        return WorkerView(
            id=worker.id,
            pid=worker.pid,
            model=spec.model if spec else None,
            kind=spec.engine if spec else None,
            devices=[spec.visible_devices or spec.device] if spec else [],
            state="busy" if state == "ready" and in_flight else state,
            in_flight=in_flight,
            restarts=resident.restarts if resident else 0,
            memory_bytes=max(ready.memory_bytes if ready else 0, beat.memory_bytes if beat else 0),
            started_at=worker.started_at,
            last_heartbeat=worker.last_heartbeat,
            cause=worker.cause,
        )
