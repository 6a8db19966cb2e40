"""What operators ask: load and unload models, look at workers and memory, stop what runs."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bitinglip import errors
from bitinglip.scheduling.models.manager import RESTARTED_BY_OPERATOR, ModelManager
from bitinglip.scheduling.models.state import ModelState, Replica
from bitinglip.scheduling.placement.fit import FitAnswer, Place
from bitinglip.settings import Settings
from bitinglip.telemetry.metrics import DeviceSample
from model_store.manifest import Manifest
from model_store.store import ModelStore
from workers import protocol
from workers.pool import Worker, WorkerPool

_READ_INTERVAL = 1.0  #: seconds between two looks at the devices


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
    stderr: list[str] = field(default_factory=list)


class Operations:
    """The server's models, workers and devices as one thing."""

    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        pool: WorkerPool,
        manager: ModelManager,
    ) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        self._manager = manager
        self._overdue = max(2.0, settings.workers.heartbeat_timeout / 4)
        self.bootstrapped = False  #: the store has its first models; what readiness waits for

    # ---- models --------------------------------------------------------------------------------

    def status(self, name: str) -> str:
        model_state = self._manager.models.get(name)
        return model_state.status if model_state else "available"

    def cause(self, name: str) -> str | None:
        model_state = self._manager.models.get(name)
        return model_state.cause if model_state else None

    def ready(self, name: str) -> protocol.Ready | None:
        """What the loaded model really has: context and number format may not be its files'."""
        model_state = self._manager.models.get(name)
        return model_state.ready if model_state else None

    def progress(self, name: str) -> float | None:
        """How far the load has come, from 0 to 1; None if none runs."""
        model_state = self._manager.models.get(name)
        loading = model_state.loading if model_state else []
        return max((replica.progress for replica in loading), default=None)

    def idle_seconds(self, name: str) -> float | None:
        """Since when nobody has used a loaded model; None if it is in use or not loaded."""
        replicas = self.replicas(name)
        if not replicas or any(each.state != "ready" or each.in_flight for each in replicas):
            return None
        return self._manager.now() - max(each.used_at for each in replicas)

    def replicas(self, name: str) -> list[Replica]:
        model_state = self._manager.models.get(name)
        return list(model_state.replicas.values()) if model_state else []

    async def load(self, name: str) -> None:
        """Load a model now, also one that was given up; returns when it is ready.

        Raises what the load failed with, or ModelDoesNotFit.
        """
        model_state = self._manager.model_state(name)
        if model_state.serving:
            return
        model_state.given_up = model_state.failed = False
        model_state.retry_at = 0.0
        model_state.budget.reset()
        self._manager.clear_quarantine(name)
        model_state.asked = self._manager.now()
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        model_state.watchers.append(outcome)
        self._manager.replan()
        await outcome

    async def unload(self, name: str) -> None:
        """Stop a model's workers and forget its failures. Raises ModelInUse if it has work."""
        self._store.get(name)
        model_state = self._manager.models.get(name)
        if model_state is None:
            return
        if self._manager.busy(name):
            raise errors.ModelInUse(
                "The model has requests in flight; wait for them or cancel them.", param="model"
            )
        model_state.target = 0
        for worker in self._pool.ended:
            if worker.spec and worker.spec.model == name:
                self._pool.forget(worker.id)
        self._manager.unavailable(model_state, errors.ModelLoadFailed("The model was unloaded."))
        await self._end(model_state, list(model_state.replicas.values()), "unloaded")
        self._manager.clear_quarantine(name)
        # A request that came meanwhile has it loaded again, by the same books.
        if not model_state.replicas and not self._manager.busy(name):
            self._manager.models.pop(name, None)

    def in_use(self, name: str) -> bool:
        """Whether it has workers or requests."""
        return bool(self.replicas(name)) or self._manager.busy(name) > 0

    async def _end(self, model_state: ModelState, replicas: Sequence[Replica], cause: str) -> None:
        for replica in replicas:
            if replica.state != "stopping":
                self._manager.loads.stop(model_state, replica, cause)
        stops = [replica.task for replica in replicas if replica.task is not None]
        await asyncio.gather(*stops, return_exceptions=True)

    # ---- workers -------------------------------------------------------------------------------

    def workers(self) -> list[WorkerView]:
        """All that run, and those that have failed and are not being replaced."""
        running = self._pool.workers
        ids = {worker.id for worker in running}
        ended = [worker for worker in self._pool.ended if worker.id not in ids]
        return [self._view(worker) for worker in [*running, *ended]]

    def states(self) -> Mapping[str, int]:
        """How many workers are in which state."""
        return Counter(view.state for view in self.workers())

    async def restart_worker(self, worker_id: str) -> None:
        """Replace a model's worker; its unstreamed requests are run again on the new one.

        Raises Conflict for one that loads: those who wait for it would lose it.
        """
        worker = self._find(worker_id)
        if worker.spec is not None and worker.state not in ("ready", "draining"):
            raise errors.Conflict(f"The worker is {worker.state}; unload its model to stop that.")
        worker.cause = RESTARTED_BY_OPERATOR
        worker.handle.kill()
        await worker.ended.wait()

    async def stop_worker(self, worker_id: str) -> None:
        """Stop a worker for good (until its model is asked for again). Raises ModelInUse."""
        worker = self._find(worker_id)
        replica = self._manager.replica_of(worker)
        if replica is None:
            await self._pool.stop(worker)
            return
        model_state = self._manager.models[replica.model]
        if len(model_state.replicas) == 1:
            await self.unload(replica.model)
            return
        if replica.in_flight:
            raise errors.ModelInUse("The worker has requests in flight; drain it first.")
        model_state.target -= 1
        await self._end(model_state, [replica], "stopped on request")

    def drain_worker(self, worker_id: str) -> None:
        """Give a worker nothing new, and stop it when it has finished what it runs."""
        replica = self._manager.replica_of(self._find(worker_id))
        if replica is None:
            raise errors.Conflict("This worker runs no model.")
        model_state = self._manager.models[replica.model]
        model_state.target = max(0, model_state.target - 1)
        self._manager.drain(model_state, replica, "drained on request")

    def _find(self, worker_id: str) -> Worker:
        for worker in self._pool.workers:
            if worker.id == worker_id:
                return worker
        raise errors.WorkerNotFound(details={"worker": worker_id})

    def _view(self, worker: Worker) -> WorkerView:
        spec, ready, beat = worker.spec, worker.ready, worker.heartbeat
        model_state = self._manager.models.get(spec.model) if spec else None
        replicas = model_state.replicas.values() if model_state else ()
        replica = next((each for each in replicas if each.id == worker.id), None)
        serving = worker.state in ("ready", "draining")
        in_flight = replica.in_flight if replica and serving else 0
        state = worker.state
        return WorkerView(
            id=worker.id,
            pid=worker.pid,
            model=spec.model if spec else None,
            kind=spec.engine if spec else None,
            devices=list(replica.devices) if replica else _devices(spec),
            state="busy" if state == "ready" and in_flight else state,
            in_flight=in_flight,
            restarts=model_state.restarts if model_state else 0,
            memory_bytes=max(ready.memory_bytes if ready else 0, beat.memory_bytes if beat else 0),
            started_at=worker.started_at,
            last_heartbeat=worker.last_heartbeat,
            cause=worker.cause,
            stderr=worker.output.tail,
        )

    # ---- memory --------------------------------------------------------------------------------

    def fit(self, manifest: Manifest) -> FitAnswer:
        """Whether a model fits, where, after whom, and with which settings it would."""
        held = [each for each in self.replicas(manifest.name) if each.state != "stopping"]
        loaded = Place(", ".join(held[0].devices)) if held else None
        return self._manager.facts.fit(manifest, self._manager.rooms(), loaded)

    def devices(self) -> list[dict[str, Any]]:
        """The devices and the books of their memory, as JSON."""
        facts, ledger = self._manager.facts, self._manager.ledger()
        found = []
        for device in facts.devices:
            reading = facts.reading(device.id)
            found.append(
                {
                    "id": device.id,
                    "name": device.name,
                    "kind": device.kind,
                    "memory_bytes": device.memory_bytes,
                    "used_bytes": reading.used_bytes if reading else 0,
                    "foreign_bytes": facts.foreign(device.id),
                    "reserved_bytes": sum(h.devices[device.id] for h in ledger.on(device.id)),
                    "free_bytes": max(0, ledger.free(device.id)),
                    "utilisation": reading and reading.utilisation,
                    "temperature_c": reading and reading.temperature_c,
                    "power_w": reading and reading.power_w,
                }
            )
        return found

    def samples(self) -> list[DeviceSample]:
        """The devices for the metrics."""
        return [
            DeviceSample(
                device=each["id"],
                total=each["memory_bytes"],
                used=each["used_bytes"],
                reserved=each["reserved_bytes"],
                utilisation=each["utilisation"],
            )
            for each in self.devices()
        ]

    def reservations(self) -> list[dict[str, Any]]:
        """Who has how much of which device, as JSON."""
        return [
            {"worker": each.id, "model": each.model, "device": device, "bytes": size}
            for each in self._manager.replicas()
            for device, size in each.devices.items()
        ]

    # ---- as long as the server -----------------------------------------------------------------

    def open(self) -> None:
        """Begin the loads that the settings ask for, and warm the spare."""
        self.bootstrapped = True
        for name in self._store.names():
            own = self._settings.model(name)
            if own.preload:
                self._manager.model_state(name).asked = self._manager.now()
                self._manager.replan()
        self._pool.warm_spare()

    async def watch(self) -> None:
        """Kill silent workers."""
        await self._pool.watch()

    async def facts(self) -> None:
        """Read the devices again and again: other programs take and leave memory."""
        manager, facts = self._manager, self._manager.facts
        while True:
            pids = {worker.id: worker.pid for worker in self._pool.workers}
            readings = await asyncio.to_thread(facts.read, list(pids.values()))
            facts.note(readings, manager.replicas(), pids)
            for replica in manager.replicas():
                facts.observe(manager.models[replica.model].manifest, replica)
            manager.look(self._overdue)
            await asyncio.sleep(_READ_INTERVAL)

    async def close(self) -> None:
        await self._manager.close()
        await self._pool.close()


def _devices(spec: protocol.Load | None) -> list[str]:
    return [spec.visible_devices or spec.device] if spec else []
