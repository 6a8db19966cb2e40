"""A dry run asks the planner where it would load a model, and after which evictions. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bitinglip.scheduling.placement import planner
from bitinglip.scheduling.placement.eviction import EvictionRules, may_give
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger, Reservation


@dataclass(frozen=True, slots=True)
class Placement:
    """A model fits on these devices once these models have been evicted, and as much of other
    gateways' idle ones."""

    devices: tuple[str, ...]
    evict: tuple[str, ...] = ()
    evict_elsewhere: int = 0  #: bytes

    @property
    def device(self) -> str:
        """Join the devices' ids as the API does."""
        return ", ".join(self.devices)

    @property
    def is_free(self) -> bool:
        """Return True if nothing is to be evicted for it."""
        return not self.evict and not self.evict_elsewhere


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Holds the facts of one moment, as the planner gets them."""

    devices: Sequence[DeviceCapacity]
    reservations: Sequence[Reservation] = ()
    now: float = 0.0
    rules: EvictionRules = field(default_factory=EvictionRules)

    def ledger(self) -> Ledger:
        return Ledger(self.devices, self.reservations)

    def alone(self) -> "Snapshot":
        """Return the facts as they are where other gateways unload nothing, though asked to."""
        kept = [replace(d, elsewhere=replace(d.elsewhere, idle=0)) for d in self.devices]
        return replace(self, devices=kept)

    def idle_on(self, device: str) -> list[Reservation]:
        """List the models on a device that may be evicted now."""
        return [
            each
            for each in self.reservations
            if device in each.devices and may_give(each, self.now, self.rules)
        ]


def place(
    model: str,
    needs: Mapping[str, int],
    snapshot: Snapshot,
    *,
    spread: int = 1,
    each_device: int = 0,
    ram: int = 0,
    file_bytes: int = 0,
    weights_of: str = "",
) -> Placement | None:
    """Return where the planner would load a model, or None if it would refuse it.

    The first run is what the planner does for a request that arrives now. That may be to wait
    until models have had their minimum residency; the second run assumes that they have had it.
    """
    demand = planner.Demand(
        model,
        0,
        needs,
        since=snapshot.now,
        spread=spread,
        each_device=each_device,
        ram=ram,
        file_bytes=file_bytes,
        weights_of=weights_of,
    )
    return _run(demand, snapshot) or _run(replace(demand, since=float("-inf")), _later(snapshot))


def obtainable(kind: str, needed: int, snapshot: Snapshot, *, spread: int = 1) -> int:
    """Return how much a model that needs so much could get at best on devices of a kind."""
    ledger = snapshot.ledger()
    devices = [each for each in snapshot.devices if each.kind == kind and not each.reason]
    if any(needed <= device.largest for device in devices):
        spread = 1  # only what is too large for every device is split
    machines: dict[str, list[int]] = {}
    for device in devices:
        machines.setdefault(device.node, []).append(ledger.obtainable(device))
    return max((sum(sorted(sizes)[-spread:]) for sizes in machines.values()), default=0)


def _run(demand: planner.Demand, snapshot: Snapshot) -> Placement | None:
    plan = planner.plan(snapshot.ledger(), [demand], snapshot.now, snapshot.rules)
    for load in plan.loads:
        return Placement(tuple(load.devices))
    for load in plan.waiting:
        held = {each.id: each for each in snapshot.reservations}
        leaving = [each for each in snapshot.reservations if each.leaving]
        leaving += [held[evict.id] for evict in plan.evictions]
        there = (
            each.model
            for each in leaving
            if set(each.devices) & set(load.devices)
            or (load.ram and snapshot.ledger().ram_of(each))
        )
        return Placement(tuple(load.devices), tuple(dict.fromkeys(there)))
    for device, wished in plan.wishes.items():  # beside all of our own that may go
        own = (each.model for each in snapshot.idle_on(device))
        return Placement((device,), tuple(dict.fromkeys(own)), wished)
    return None


def _later(snapshot: Snapshot) -> Snapshot:
    """Return the facts as they are once loads have ended and every model may be evicted."""
    now = snapshot.now
    reservations = [
        replace(each, state="ready", loaded_at=now, used_at=now, ram=each.lasting_ram)
        if each.state == "loading"
        else each
        for each in snapshot.reservations
    ]
    rules = replace(snapshot.rules, min_residency=0.0)
    return replace(snapshot, reservations=reservations, rules=rules)
