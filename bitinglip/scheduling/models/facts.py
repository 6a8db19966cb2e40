"""Gathers the planner's facts: devices, memory on them, demands. No model state is changed."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from bitinglip import errors
from bitinglip.scheduling.models.capacity import capacity
from bitinglip.scheduling.models.contexts import ContextSizes
from bitinglip.scheduling.models.formats import NumberFormats
from bitinglip.scheduling.models.offload import image_load
from bitinglip.scheduling.models.shared_nodes import SharedNodes
from bitinglip.scheduling.models.state import ModelState, Replica
from bitinglip.scheduling.models.use import MemoryUse
from bitinglip.scheduling.placement import planner
from bitinglip.scheduling.placement.dry_run import Placement, Snapshot
from bitinglip.scheduling.placement.estimate import LoadConfig, cache_grant
from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.fit import FitAnswer, fit, fit_info
from bitinglip.scheduling.placement.footprints import Footprints, MemoryEstimate
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Reservation
from bitinglip.scheduling.placement.planner import Demand
from bitinglip.scheduling.placement.ram import NO_RAM, RamNeed, ram_need
from bitinglip.scheduling.placement.split import weight_limits
from bitinglip.settings import Model, Settings
from model_store.manifest import Manifest
from workers.devices import Condition, Device, Devices, DeviceUsage, Report, State
from workers.engines.defaults import TEXT_ROWS
from workers.engines.quantization import FORMATS, card_lack, package_lack
from workers.engines.registry import engine_info
from workers.faults import NO_NUMBERS, Fault

_BYTES_PER_SECOND = 1e9  #: assumed load speed of a model that was never loaded
_BLOCKED_SECONDS = 30.0  #: Retry-After when other models hold the memory
_PROVEN_JOBS = 32  #: after which a model has shown what it takes
_KIND_OF = {"cuda": ("cuda", "fake"), "cpu": ("cpu", "fake")}


class ResourceFacts:
    """Knows the devices, and how much memory models take on them."""

    def __init__(
        self,
        settings: Settings,
        devices: Devices,
        footprints: Footprints,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._devices = devices
        self._footprints = footprints
        self._clock = clock
        #: by device, with what other gateways have of it, at the last sample
        self._conditions: dict[str, tuple[Condition, int]] | None = None
        self._formats = NumberFormats()
        self._contexts = ContextSizes()
        self.use = MemoryUse(clock)
        self.shared = SharedNodes(devices, clock)
        self.lora_numbers: Callable[[Manifest], int] = lambda _: 0  #: of a model's LoRAs

    # ---- devices -------------------------------------------------------------------------------

    @property
    def devices(self) -> tuple[Device, ...]:
        return self._devices.list()

    def mark(self, device: str, state: State, reason: str, *, source: str) -> None:
        """Say that a device is not well; see ``Devices.mark``."""
        self._devices.mark(device, state, reason, source=source)

    def clear(self, device: str, *, source: str) -> None:
        """Take back what this source said of a device."""
        self._devices.clear(device, source=source)

    def ask_torch(self) -> bool:
        """Ask torch about the cards in a new process; see ``Devices.ask_torch``."""
        return self._devices.ask_torch()

    def take_reports(self) -> Sequence[Report]:
        """Return the faults that cards have reported since the last call."""
        return self._devices.take_reports()

    def reading(self, device: str) -> DeviceUsage | None:
        return self.use.reading(device)

    def sample(self, pids: Iterable[int], *, idle: bool = False) -> dict[str, DeviceUsage]:
        """Sample the devices; it blocks for some milliseconds, so call it in a thread.

        ``idle``: no model is loaded or about to be.
        """
        return self._devices.read(pids, idle=idle)

    def device_problems(self) -> Mapping[str, str]:
        """Map devices that are not well to their reasons, and "card" to why one is missing."""
        return self._devices.problems()

    def pressure(self) -> str | None:
        """Say that programs wait for RAM; None if they do not, or the kernel does not tell."""
        return self._devices.pressure()

    def refused_target(self, model_state: ModelState) -> int:
        """Return how many replicas a model that was refused is to have: those that it has, or what
        is preloaded as soon as a machine of the cluster comes or comes back."""
        own, there = self._settings.model(model_state.name), len(model_state.serving)
        lost = any(each.node and each.condition.state != "well" for each in self.devices)
        awaited = own.preload and (lost or not self.devices)
        return max(there, own.replicas) if awaited else there

    def lacks_card(self) -> str | None:
        """Say why there is no usable card although devices.require asks for one, or None."""
        if self._settings.devices.require == "auto":
            return None
        if any(each.kind != "cpu" and each.condition.state != "lost" for each in self.devices):
            return None
        reasons = self.device_problems().values()
        note = (self._devices.note or "no card was found").partition(": models run")[0]
        return " ".join(reasons) or f"There is no usable card: {note}."

    def update(
        self,
        readings: Mapping[str, DeviceUsage],
        replicas: Iterable[Replica],
        pids: Mapping[str, int],
    ) -> bool:
        """Take over a sample; memory that is not ours belongs to other programs.

        ``pids``: the process ids of our workers, loading ones included, by worker id. Returns
        whether the devices, which of them are well, or what other gateways have of them has
        changed since the last sample.
        """
        self.use.update(readings, replicas, pids, self.devices, self.shared.elsewhere)
        before, theirs = self._conditions, self.shared.elsewhere
        self._conditions = {d.id: (d.condition, theirs(d.id).reserved) for d in self.devices}
        return before is not None and before != self._conditions

    def other_bytes(self, device: str) -> int:
        """Return the bytes on a device that other programs hold."""
        return self.use.other_bytes(device)

    def capacities(self) -> list[DeviceCapacity]:
        own = self._settings.devices
        return [capacity(device, self.use, own, self.shared) for device in self.devices]

    # ---- models --------------------------------------------------------------------------------

    def kinds(self, own: Model) -> list[str]:
        """List the kinds of device that a model may go to; only its setting sends it to the CPU
        of a machine that has an accelerator."""
        there = list(dict.fromkeys(device.kind for device in self.devices))
        if own.device is not None:
            return [kind for kind in there if kind in _KIND_OF[own.device]]
        if self._settings.devices.require == "cuda":
            return [kind for kind in there[:1] if kind != "cpu"]
        return there[:1]

    def visible_devices(self, replica: Replica) -> str:
        """Return CUDA_VISIBLE_DEVICES for a replica: its cards by what never changes of them."""
        pins = {device.id: device.pin or device.id for device in self.devices}
        return ",".join(pins.get(each, each) for each in replica.devices)

    def need(self, manifest: Manifest, kind: str) -> MemoryEstimate:
        return self._footprints.need(manifest, self.load_config(manifest, kind))

    def ram(self, manifest: Manifest, kind: str) -> RamNeed:
        """Return the RAM that a model takes beside a device of that kind."""
        return ram_need(manifest, self.load_config(manifest, kind))

    def device_weights(self, manifest: Manifest, replica: Replica) -> tuple[int, ...]:
        """Return the bytes of weights that each of several devices may hold, in their order."""
        if len(replica.devices) == 1:
            return ()
        need = self.need(manifest, self.kind_of(replica)).footprint
        return weight_limits(tuple(replica.devices.values()), need)

    def load_config(self, manifest: Manifest, kind: str) -> LoadConfig:
        own = self._settings.model(manifest.name)
        load_config = LoadConfig(
            device=kind,
            dtype=own.dtype or self._formats.planned(manifest, kind, self.devices),
            quantization=own.quantization,
            max_context=own.max_context,
            kv_cache_bytes=cache_grant(own.kv_cache_bytes, manifest, kind, self.devices),
            kv_cache_dtype=own.text.kv_cache_dtype,
            max_batch=own.max_batch,
            prefix_ram_bytes=own.text.prefix_ram_bytes,
            graphs=own.text.graphs != "off",
            lora_numbers=self.lora_numbers(manifest),
            claimed_bytes=own.claimed_bytes(manifest.engine),
            context_bytes=self._contexts.of(
                each.name for each in self.devices if each.kind == kind
            ),
        )
        if manifest.kind != "image":
            return load_config
        return image_load(
            manifest,
            load_config,
            own.image,
            self.capacities,
            lambda each: self._footprints.need(manifest, each),
        )

    def context_bytes(self, replica: Replica) -> int | None:
        """Return the size of a context on a replica's cards; None if it was not measured yet."""
        return self._contexts.of(device.name for device in self._devices_of(replica))

    def dtype_of_load(self, replica: Replica) -> str | None:
        """Return the number format to load a replica in; None leaves it to the engine."""
        own = self._settings.model(replica.model).dtype
        return own or self._formats.of_load(replica.model, self._devices_of(replica))

    def loads_wider(self, replica: Replica, fault: Fault | None) -> bool:
        """Return True if a load that failed with this fault is to be tried again in float32."""
        if fault is not NO_NUMBERS or self._settings.model(replica.model).dtype is not None:
            return False
        return self._formats.widen(replica.model, self._devices_of(replica))

    def _devices_of(self, replica: Replica) -> list[Device]:
        return [device for device in self.devices if device.id in replica.devices]

    def quantizations(self, manifest: Manifest, kind: str) -> dict[str, str | None]:
        """Return the formats that a model can be quantised to on devices of a kind, each with the
        package that is not installed for it."""
        if not manifest.linear_parameters:
            return {}
        capabilities = [each.capability for each in self.devices if each.kind == kind] or [None]
        return {
            name: package_lack(name)
            for name in FORMATS
            if any(card_lack(name, each) is None for each in capabilities)
        }

    def load_seconds(self, model_state: ModelState, kind: str) -> float:
        """Return the expected load time: the last measured one, else the learned average, else an
        estimate from the size."""
        if model_state.load_seconds is not None:
            return model_state.load_seconds
        need = self.need(model_state.manifest, kind)
        return need.load_seconds or 1.0 + need.bytes / _BYTES_PER_SECOND

    def new_replica(self, model_state: ModelState, load: planner.Load) -> Replica:
        """Return the replica that a planned load makes, with what it is expected to take."""
        replica = Replica(model_state.name, load.index, load.devices, self._clock())
        kind = self.kind_of(replica)
        replica.ram = self.ram(model_state.manifest, kind)
        replica.load_seconds = self.load_seconds(model_state, kind)
        return replica

    def load_eta(self, model_state: ModelState, now: float) -> float | None:
        """Estimate the seconds until a model is loaded that is not; None if it never was."""
        kinds = self.kinds(self._settings.model(model_state.name))
        known = (self.need(model_state.manifest, kind).load_seconds for kind in kinds)
        return model_state.load_eta(now, next(filter(None, known), None))

    def reservation(self, replica: Replica, waiting: int) -> Reservation:
        own = self._settings.model(replica.model)
        return Reservation(
            id=replica.id,
            model=replica.model,
            devices=replica.devices,
            state=replica.state,
            in_flight=replica.in_flight,
            waiting=waiting,
            pinned=own.pin or replica.state == "stuck",
            loaded_at=replica.loaded_at,
            used_at=replica.used_at,
            load_seconds=replica.load_seconds,
            ram=replica.ram_bytes,
            lasting_ram=replica.ram.lasting,
            keep_alive=self._settings.keep_alive(replica.model),
        )

    def demands(self, model_state: ModelState, since: float | None, level: int) -> list[Demand]:
        """List the replicas that a model lacks; ``since``: when its oldest request came, if any."""
        own = self._settings.model(model_state.name)
        needs = {kind: self.need(model_state.manifest, kind) for kind in self.kinds(own)}
        ram = max(
            (self.ram(model_state.manifest, kind) for kind in needs),
            key=lambda need: need.loading,
            default=NO_RAM,
        )
        there = len(model_state.serving) + len(model_state.loading)
        free = (index for index in range(1000) if index not in model_state.replicas)
        return [
            Demand(
                model=model_state.name,
                index=next(free),
                needs={kind: need.bytes for kind, need in needs.items()},
                since=self._clock() if since is None else since,
                urgent=since is not None and there == 0 and number == 0,
                level=level,
                spread=self._spread(model_state.manifest, own),
                each_device=max((each.footprint.overhead for each in needs.values()), default=0),
                ram=ram.loading,
                lasting_ram=ram.lasting,
                file_bytes=model_state.manifest.file_bytes,
                weights_of=model_state.manifest.adapter_of or "",
            )
            for number in range(model_state.target - there)
        ]

    def _spread(self, manifest: Manifest, own: Model) -> int:
        engine = engine_info(own.engine or manifest.engine)
        alone = own.quantization in ("int8", "fp8")  # which are quantised as they reach a card
        return len(self.devices) if engine.multi_device and not alone else 1

    def observe(
        self, manifest: Manifest, replica: Replica, *, loaded: bool = False
    ) -> Mapping[str, int]:
        """Learn how much memory a running model takes; return what to reserve for the replica."""
        worker, kind = replica.worker, self.kind_of(replica)
        if worker is None or worker.ready is None:
            return replica.devices
        cards = [device for device in self._devices_of(replica) if device.kind == "cuda"]
        if len(cards) == 1 and (reading := self.use.reading(cards[0].id)) is not None:
            self._contexts.observe(cards[0].name, worker, reading.processes.get(worker.pid))
        beat = worker.heartbeat.memory_bytes if worker.heartbeat else 0
        self._footprints.observe(
            manifest,
            self.load_config(manifest, kind),
            memory_bytes=max(worker.ready.memory_bytes, beat),
            load_seconds=replica.load_seconds if loaded else None,
        )
        if len(replica.devices) != 1:
            return replica.devices
        ((device, reserved),) = replica.devices.items()
        if replica.ended_jobs >= _PROVEN_JOBS:
            # The highest that was seen, so that it shrinks once and then follows what is new.
            reserved = min(reserved, self.need(manifest, kind).bytes)
        return {device: max(reserved, worker.ready.memory_bytes, beat)}

    def fit(
        self,
        manifest: Manifest,
        reservations: Sequence[Reservation],
        rules: EvictionRules,
        loaded: Placement | None = None,
        *,
        alone: bool = False,
    ) -> FitAnswer:
        """Answer where a model fits, after which evictions, or with which settings; ``alone``:
        without room that other gateways could make."""
        own = self._settings.model(manifest.name)
        kinds = self.kinds(own)
        others = [device.kind for device in self.devices if device.kind not in kinds]
        facts = Snapshot(self.capacities(), reservations, self._clock(), rules)
        return fit(
            manifest,
            [self.load_config(manifest, kind) for kind in kinds],
            facts.alone() if alone else facts,
            lambda load_config: self._footprints.need(manifest, load_config),
            spread=self._spread(manifest, own),
            loaded=loaded,
            others=[self.load_config(manifest, kind) for kind in dict.fromkeys(others)],
            quantizations=self.quantizations(manifest, kinds[0]) if kinds else {},
        )

    def memory_suggestions(self, manifest: Manifest) -> list[dict[str, object]]:
        """Suggest settings that leave more memory to requests: a smaller cache or batch."""
        kind = self.kinds(self._settings.model(manifest.name))[0]
        load_config = self.load_config(manifest, kind)
        cache = self.need(manifest, kind).footprint.cache
        rows = load_config.max_batch or TEXT_ROWS
        found: list[dict[str, object]] = []
        if cache:
            found.append({"setting": f"models.{manifest.name}.kv_cache_bytes", "value": cache // 2})
        if rows > 1:
            found.append({"setting": f"models.{manifest.name}.max_batch", "value": rows // 2})
        return found

    def does_not_fit(
        self,
        manifest: Manifest,
        reservations: Sequence[Reservation],
        rules: EvictionRules,
        *,
        forever: bool,
    ) -> errors.ModelDoesNotFit:
        """Make the error, with numbers and suggestions; it can be retried unless ``forever``."""
        answer = self.fit(manifest, reservations, rules, alone=True)
        message = answer.message
        if answer.need is None and (missing := self._devices.missing):
            message, forever = f"{message} {missing}", False
        return errors.ModelDoesNotFit(
            message,
            param="model",
            details=fit_info(answer, manifest.name.__eq__),  # any key may get it
            retry_after=None if forever else _BLOCKED_SECONDS,
        )

    def raise_minimum(self, manifest: Manifest, replica: Replica) -> None:
        """Plan with more memory the next time: the replica ran out of its reservation."""
        held = sum(replica.devices.values())
        load_config = self.load_config(manifest, self.kind_of(replica))
        self._footprints.raise_minimum(manifest, load_config, held + held // 8)

    def kind_of(self, replica: Replica) -> str:
        kinds = {device.id: device.kind for device in self.devices}
        return next((kinds[device] for device in replica.devices if device in kinds), "cpu")
