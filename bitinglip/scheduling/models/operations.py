"""Runs the administrator's operations: load and unload models, list and stop workers, show
memory."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bitinglip import errors
from bitinglip.scheduling.models.deaths import RESTARTED_BY_OPERATOR
from bitinglip.scheduling.models.growth import RamGrowth, resident
from bitinglip.scheduling.models.liveness import CardLiveness
from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.model_views import ModelViews
from bitinglip.scheduling.placement.dry_run import Placement
from bitinglip.scheduling.placement.fit import FitAnswer, needs_info
from bitinglip.settings import Settings
from bitinglip.telemetry.device_gauges import DeviceSample
from model_store.manifest import Manifest
from model_store.store import ModelStore
from workers import protocol
from workers.devices.device import is_processor, node_of
from workers.pool import WorkerPool
from workers.worker import Worker

CARD_LOST = "was ended, because its card is lost"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """Shows a worker as clients see it."""

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
    ram_bytes: int | None = None  #: resident; None where it is not known
    activity: protocol.Activity | None = None  #: what it is busy with that may take minutes
    confined: protocol.Confined | None = None  #: None until it is ready
    stderr: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Shows a device and its memory in bytes, as clients see it; None is unknown."""

    id: str
    name: str
    kind: str
    memory_bytes: int
    used_bytes: int
    foreign_bytes: int  #: used by other programs
    elsewhere_bytes: int  #: reserved by other gateways
    reserved_bytes: int
    free_bytes: int
    utilisation: float | None
    temperature_c: float | None
    power_w: float | None
    state: str = "well"  #: well, doubtful or lost
    reason: str | None = None
    note: str | None = None  #: what is special of it, and no fault
    slowed_by: tuple[str, ...] = ()  #: what keeps its clocks down
    last_look: datetime | None = None  #: when it has answered last
    last_job: datetime | None = None  #: when a job has succeeded on it last, to a second


@dataclass(frozen=True, slots=True)
class ReservationView:
    """Shows the memory that one worker holds on one device."""

    worker: str
    model: str
    device: str
    bytes: int


class Operations(ModelViews):
    """Shows models, workers and devices, and hands changes to their owners."""

    def __init__(
        self, settings: Settings, store: ModelStore, pool: WorkerPool, manager: ModelManager
    ) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        super().__init__(manager)
        self._known_devices: set[str] = set()
        self._growth = RamGrowth()
        self._liveness = CardLiveness()
        self._answered_at: dict[str, float] = {}  #: by device
        self._ending: dict[Worker, asyncio.Task[None]] = {}  #: workers of lost cards
        self.bootstrapped = False  #: the store has its first models; what readiness waits for

    # ---- models --------------------------------------------------------------------------------

    async def load(self, name: str) -> None:
        """Load a model, also one that was given up; return when it is ready.

        Raises what the load failed with, or ModelDoesNotFit.
        """
        await self._manager.load(name)

    async def unload(self, name: str) -> None:
        """Stop a model's workers and forget its failures. Raises ModelInUse or UnknownModel."""
        self._store.get(name)
        await self._manager.unload(name)

    # ---- workers -------------------------------------------------------------------------------

    def workers(self) -> list[WorkerView]:
        """List running workers, and failed ones that are not being replaced."""
        running = self._pool.workers
        ids = {worker.id for worker in running}
        ended = [worker for worker in self._pool.ended if worker.id not in ids]
        return [self._view(worker) for worker in [*running, *ended]]

    def states(self) -> Mapping[str, int]:
        """Count the workers by state."""
        return Counter(view.state for view in self.workers())

    async def restart_worker(self, worker_id: str) -> None:
        """Replace a model's worker; its requests without output run again on the new one.

        Raises Conflict for a loading worker, because requests wait for it.
        """
        worker = self._find(worker_id)
        if worker.spec is not None and worker.state not in ("ready", "draining"):
            raise errors.Conflict(f"The worker is {worker.state}; unload its model to stop that.")
        await self._pool.kill(worker, RESTARTED_BY_OPERATOR)

    async def stop_worker(self, worker_id: str) -> None:
        """Stop a worker until its model is requested again. Raises ModelInUse."""
        worker = self._find(worker_id)
        replica = self._manager.by_worker.get(worker)
        if replica is None:
            await self._pool.stop(worker)
        else:
            await self._manager.stop_replica(replica)

    def drain_worker(self, worker_id: str) -> None:
        """Send a worker no new jobs, and stop it when it has finished its running ones."""
        replica = self._manager.by_worker.get(self._find(worker_id))
        if replica is None:
            raise errors.Conflict("This worker runs no model.")
        self._manager.drain_replica(replica, "drained on request")

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
            devices=list(replica.devices)
            if replica
            else [spec.visible_devices or spec.device]
            if spec
            else [],
            state="busy" if state == "ready" and in_flight else state,
            in_flight=in_flight,
            restarts=model_state.restarts if model_state else 0,
            memory_bytes=max(ready.memory_bytes if ready else 0, beat.memory_bytes if beat else 0),
            started_at=worker.started_at,
            last_heartbeat=worker.last_heartbeat,
            cause=worker.cause,
            ram_bytes=resident(self._manager, worker, replica.devices if replica else ()),
            activity=worker.activity,
            confined=ready.confined if ready else None,
            stderr=worker.output.tail,
        )

    # ---- memory --------------------------------------------------------------------------------

    def fit(self, manifest: Manifest) -> FitAnswer:
        """Answer where a model fits, after which evictions, or with which settings."""
        manager = self._manager
        manifest = self._hosting(manifest)
        held = self.replicas(manifest.name)
        places = (Placement(tuple(each.devices)) for each in held if each.state != "stopping")
        reservations = manager.reservations()
        return manager.facts.fit(manifest, reservations, manager.rules, next(places, None))

    def needs(self, manifest: Manifest) -> dict[str, Any]:
        """Return what a model would take where it would go; see ``needs_info``."""
        facts, manifest = self._manager.facts, self._hosting(manifest)
        kind = next(iter(facts.kinds(self._settings.model(manifest.name))), "cpu")
        load_config = facts.load_config(manifest, kind)
        return needs_info(manifest, load_config, facts.quantizations(manifest, kind))

    def _hosting(self, manifest: Manifest) -> Manifest:
        """Return the model whose workers run this one, which need not be in the store."""
        host = self._manager.host(manifest.name)
        return manifest if host == manifest.name else self._store.get(host)

    def devices(self) -> list[DeviceView]:
        """List the devices with their memory."""
        facts, ledger = self._manager.facts, self._manager.ledger()
        found = []
        for device in facts.devices:
            reading, at = facts.reading(device.id), facts.use.looked_at(device.id)
            free = 0 if device.condition.reason else ledger.free(device.id)
            found.append(
                DeviceView(
                    id=device.id,
                    name=device.name,
                    kind=device.kind,
                    memory_bytes=device.memory_bytes,
                    used_bytes=reading.used_bytes if reading else 0,
                    foreign_bytes=facts.other_bytes(device.id),
                    elsewhere_bytes=facts.shared.elsewhere(device.id).reserved,
                    reserved_bytes=sum(h.devices[device.id] for h in ledger.on(device.id)),
                    free_bytes=max(0, free),
                    utilisation=reading.utilisation if reading else None,
                    temperature_c=reading.temperature_c if reading else None,
                    power_w=reading.power_w if reading else None,
                    state=device.condition.state,
                    reason=device.condition.reason,
                    note=device.note,
                    slowed_by=reading.slowed_by if reading else (),
                    last_look=None if at is None else datetime.fromtimestamp(at, UTC),
                    last_job=self._last_job(device.id),
                )
            )
        return found

    def _last_job(self, device: str) -> datetime | None:
        at = self._answered_at.get(device)
        if at is None:
            return None
        return datetime.now(UTC) - timedelta(seconds=self._manager.clock() - at)

    def device_problems(self) -> Mapping[str, str]:
        """Map devices that are not well to their reasons, "card" to why one is missing, and "ram"
        to what to do where programs wait for it."""
        found, short = self._manager.facts.device_problems(), self._manager.facts.pressure()
        return {**found, "ram": short} if short else found

    def not_alive(self) -> str | None:
        """Say why the server is to be restarted, if devices.live_without_card is off."""
        return None if self._settings.devices.live_without_card else self._liveness.gone

    def lacks_card(self) -> str | None:
        """Say why there is no usable card although devices.require asks for one; else None."""
        return self._manager.facts.lacks_card()

    def samples(self) -> list[DeviceSample]:
        """List the devices for the metrics."""
        return [
            DeviceSample(
                device=each.id,
                total=each.memory_bytes,
                used=each.used_bytes,
                reserved=each.reserved_bytes,
                utilisation=each.utilisation,
                power_w=each.power_w,
                temperature_c=each.temperature_c,
                slowed_by=each.slowed_by,
                elsewhere=each.elsewhere_bytes if node_of(each.id) else None,
            )
            for each in self.devices()
        ]

    def reservations(self) -> list[ReservationView]:
        """List the memory that workers hold, by device."""
        return [
            ReservationView(worker=each.id, model=each.model, device=device, bytes=size)
            for each in self._manager.replicas()
            for device, size in each.devices.items()
        ]

    # ---- start and background --------------------------------------------------------------------

    def open(self) -> None:
        """Begin to preload models, and start the spare."""
        self.bootstrapped = True
        self._preload(self._store.names())
        self._pool.warm_spare()

    def arrived(self, name: str) -> None:
        """Load a model that has come while the server runs, if its settings preload it."""
        self._preload([name])

    def _preload(self, names: Iterable[str]) -> None:
        for name in names:
            if self._settings.model(name).preload and not self.replicas(name):
                self._manager.preload(name)

    async def watch(self) -> None:
        """Kill workers without heartbeat, for as long as the server runs."""
        await self._pool.watch()

    async def sample_devices(self) -> None:
        """Sample the devices once: other programs take and free memory.

        Raises OSError or psutil.Error if the kernel's figures cannot be read; the last ones stay.
        """
        pids = {worker.id: worker.pid for worker in self._pool.workers}
        idle = not any(self._manager.replicas())
        facts = self._manager.facts
        sample = await asyncio.to_thread(facts.sample, list(pids.values()), idle=idle)
        known, self._known_devices = self._known_devices, {device.id for device in facts.devices}
        self._manager.refresh(sample, pids)
        self._liveness.update(facts.devices)
        for replica in self._manager.replicas():  # whose devices may outlive it
            if replica.answered_at is not None:
                for device in replica.devices:
                    before = self._answered_at.get(device, 0.0)
                    self._answered_at[device] = max(before, replica.answered_at)
        if known and (found := self._known_devices - known):
            self._use_found(found)
        self._end_workers_of_lost_cards()
        self._growth.replace(self._manager)

    async def ask_torch(self) -> None:
        """Ask torch what only it knows of the cards, in a process of its own."""
        if await asyncio.to_thread(self._manager.facts.ask_torch):
            self._manager.replan()

    def _use_found(self, devices: Collection[str]) -> None:
        """Move models that run on the CPU for want of a card, if there is one among these devices,
        and preload those that could not."""
        no_card = all(map(is_processor, devices))  # as of a node that joins
        for replica in () if no_card else list(self._manager.replicas()):
            own = self._settings.model(replica.model)
            if own.device is None and all(map(is_processor, replica.devices)):
                self._manager.drain_replica(replica, "a card was found")
        if self.bootstrapped:
            self._preload(self._store.names())

    def _end_workers_of_lost_cards(self) -> None:
        """End workers whose card is gone: they would hang, and their jobs can run elsewhere."""
        devices = self._manager.facts.devices
        lost = {each.id for each in devices if each.condition.state == "lost"}
        ids = {
            replica.id
            for replica in self._manager.replicas()
            if replica.state in ("ready", "draining") and not lost.isdisjoint(replica.devices)
        }
        for worker in self._pool.workers:
            if worker.id in ids and not worker.stuck and worker not in self._ending:
                self._ending[worker] = asyncio.create_task(self._end_worker(worker))

    async def _end_worker(self, worker: Worker) -> None:
        try:
            await self._pool.kill(worker, CARD_LOST)
        finally:
            self._ending.pop(worker, None)

    async def close(self) -> None:
        for end in list(self._ending.values()):
            end.cancel()
        await self._manager.close()
        await self._pool.close()
        await self.record_uses()
