"""The planner decides what to load where and which models to evict: a pure function of the facts.

A model with waiting requests gets memory in this order: memory that is free; memory that running
evictions will free; idle models, the cheapest to load again first; models in use, by draining them,
once they have had their minimum residency and the wait has become long. So clients that alternate
between models share each load among many requests instead of reloading for every one, and no model
waits for ever.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bitinglip.scheduling.placement import eviction
from bitinglip.scheduling.placement.eviction import EvictionRules, EvictionSet
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger, Reservation
from bitinglip.scheduling.placement.plan import Demand, Evict, Load, Plan, Refuse
from bitinglip.scheduling.placement.split import shares

__all__ = ["Demand", "Evict", "Load", "Plan", "Refuse", "plan"]

_RAM = "ram"  #: stands for the RAM of reservations on any device while models are chosen for it
#: Seconds for which memory must be missing before models are evicted for another program: use that
#: flaps, as a browser's does, would have them loaded and evicted in turn.
_SHORT_SECONDS = 3.0
_NOT_YET = float("inf")  #: the cost of memory that no eviction can free now


def plan(ledger: Ledger, demands: Iterable[Demand], now: float, rules: EvictionRules) -> Plan:
    """Decide what to do now. It changes ``ledger``: what the plan promises is taken from it."""
    planner = _Planner(ledger, now, rules)
    planner.expire()
    planner.evict_for_external_use()
    for demand in sorted(demands, key=lambda d: (not d.urgent, -d.level, d.since, d.model)):
        planner.place(demand)
    return planner.plan


class _Planner:
    def __init__(self, ledger: Ledger, now: float, rules: EvictionRules) -> None:
        self.plan = Plan()
        self._ledger = ledger
        self._now = now
        self._rules = rules
        self._coming = {device.id: ledger.leaving(device.id) for device in ledger.devices}
        # What runs on a device that is not well could not be loaded there again.
        self._in_question = {device.id for device in ledger.devices if device.reason}
        self._evicted: set[str] = set()  #: reservations that this plan evicts
        self._claimed = False

    # ---- evictions without a demand --------------------------------------------------------------

    def expire(self) -> None:
        """Evict models that have been idle for their keep-alive time."""
        for reservation in self._ledger.reservations:
            if reservation.keep_alive is None or reservation.pinned or not reservation.idle:
                continue
            if not self._in_question.isdisjoint(reservation.devices):
                continue
            ends = reservation.used_at + reservation.keep_alive
            if ends <= self._now:
                self._evict(reservation, f"not used for {reservation.keep_alive:g} s")
            else:
                self._replan_at(ends)

    def evict_for_external_use(self) -> None:
        """Evict idle models where another program has taken memory that was ours."""
        for device in self._ledger.devices:
            missing = -(self._ledger.free(device.id) + self._coming[device.id])
            if missing <= 0 or device.reason:
                continue
            if self._now < device.short_since + _SHORT_SECONDS:
                self._replan_at(device.short_since + _SHORT_SECONDS)
                continue
            idle = [h for h in self._candidates(device.id) if h.idle and not h.pinned]
            freed = 0
            for reservation in sorted(idle, key=lambda h: eviction.cost(h, self._now)):
                if freed < missing:
                    freed += reservation.devices[device.id]
                    self._evict(reservation, "another program took its memory")

    # ---- demands ---------------------------------------------------------------------------------

    def place(self, demand: Demand) -> None:
        """Load the model, or free memory for it, or refuse it."""
        of_kind = [device for device in self._ledger.devices if device.kind in demand.needs]
        devices: Sequence[DeviceCapacity] = [each for each in of_kind if not each.reason]
        fitting: Sequence[DeviceCapacity] = [
            device for device in devices if demand.needs[device.kind] <= device.largest
        ]
        if devices:
            with_ram = self._with_ram(demand, fitting or devices)
            if not with_ram:
                return
            fitting, devices = (with_ram, devices) if fitting else (fitting, with_ram)
        if not fitting:
            if not self._await_doubtful(demand, of_kind):
                self._place_split(demand, devices, blocked=len(devices) < len(of_kind))
            return
        if self._load_into_free(demand, fitting):
            return
        if not demand.urgent:
            return
        if self._await_leaving(demand, fitting) or self._free_by_eviction(demand, fitting):
            return
        possible = [device for device in fitting if self._could_free(demand, device)]
        if not possible:
            self.plan.refusals.append(Refuse(demand.model, forever=False))
            return
        device = min(possible, key=lambda device: self._missing(demand, device))
        self.plan.missing_bytes += self._missing(demand, device)
        self._claim(demand, device)

    def _with_ram(
        self, demand: Demand, devices: Sequence[DeviceCapacity]
    ) -> Sequence[DeviceCapacity]:
        """Return the devices of machines that have the RAM that the load takes; if there is none,
        wait or make room for it.

        RAM that other loads take comes free when they end, so that two do not run at once that
        need it all. Models are evicted for it only where the load could have its device.
        """
        free = {device.node: self._ledger.ram_free(device.node) for device in devices}
        missing = {node: demand.ram - ram for node, ram in free.items() if ram is not None}
        able = [device for device in devices if missing.get(device.node, 0) <= 0]
        if able or not demand.urgent:
            return able
        self.plan.missing_bytes += min(missing.values())
        total = {node: self._ledger.ram(node) or 0 for node in missing}
        most = {node: min(total[node], self._ledger.ram_obtainable(node) or 0) for node in missing}
        possible = [device for device in devices if demand.ram <= most[device.node]]
        if not possible:
            forever = demand.ram > max(total.values())
            self.plan.refusals.append(Refuse(demand.model, forever=forever))
            return ()
        device = max(possible, key=lambda device: self._ledger.free(device.id))
        place, node = {device.id: demand.needs[device.kind]}, device.node
        lacks = missing[node] - self._ledger.ram_coming(node)
        if lacks <= 0 or self._evict_for_ram(demand, possible, node, lacks):
            self._await(demand, place)
        else:
            self._ledger.take(place, demand.ram, demand.lasting_ram)
        return ()

    def _evict_for_ram(
        self, demand: Demand, devices: Sequence[DeviceCapacity], node: str, missing: int
    ) -> bool:
        """Evict the cheapest set of models that frees enough RAM of a node, if there is one."""
        if not any(self._could_free(demand, each) for each in devices if each.node == node):
            return False
        holders = {
            each.id: each
            for each in self._ledger.in_ram_of(node)
            if self._ledger.ram_of(each) and each.id not in self._evicted
        }
        as_ram = [
            replace(each, devices={_RAM: self._ledger.ram_of(each)}) for each in holders.values()
        ]
        chosen = self._choose(demand, as_ram, _RAM, missing)
        for reservation in chosen.reservations if chosen else ():
            self._evict(holders[reservation.id], f"RAM to load {demand.model}")
        return chosen is not None

    def _load_into_free(self, demand: Demand, devices: Sequence[DeviceCapacity]) -> bool:
        """Load on the preferred kind, away from its other replicas and from a card that drives a
        screen, where least is left over."""
        kinds = list(demand.needs)
        free = [each for each in devices if demand.needs[each.kind] <= self._ledger.free(each.id)]
        if not free:
            return False

        def rank(device: DeviceCapacity) -> tuple[int, int, bool, int]:
            same = sum(h.model == demand.model for h in self._ledger.on(device.id))
            same += sum(
                load.model == demand.model and device.id in load.devices for load in self.plan.loads
            )
            kind, left = kinds.index(device.kind), self._ledger.free(device.id)
            return kind, same, device.display, left

        device = min(free, key=rank)
        self._load(demand, {device.id: demand.needs[device.kind]})
        return True

    def _await_doubtful(self, demand: Demand, devices: Sequence[DeviceCapacity]) -> bool:
        """Wait a while for a device that would do, and may be well again in a moment."""
        until = demand.since + self._rules.patience
        would_do = any(
            device.doubtful and demand.needs[device.kind] <= device.largest for device in devices
        )
        if not would_do or self._now >= until:
            return False
        self._replan_at(until)
        return True

    def _await_leaving(self, demand: Demand, devices: Sequence[DeviceCapacity]) -> bool:
        """Reserve the memory of running evictions, if they will free enough."""
        for device in devices:
            need = demand.needs[device.kind]
            if need <= self._ledger.free(device.id) + self._coming[device.id]:
                self._await(demand, {device.id: need})
                return True
        return False

    def _free_by_eviction(self, demand: Demand, devices: Sequence[DeviceCapacity]) -> bool:
        """Evict the cheapest set of models that frees enough memory, if there is one."""
        options = [
            (chosen.cost, device.id, chosen)
            for device in devices
            if (chosen := self._eviction_set(demand, device))
        ]
        if not options:
            return False
        _, device_id, chosen = min(options, key=lambda option: option[:2])
        for reservation in chosen.reservations:
            self._evict(reservation, f"room for {demand.model}")
        device = next(device for device in devices if device.id == device_id)
        self._await(demand, {device_id: demand.needs[device.kind]})
        return True

    def _eviction_set(self, demand: Demand, device: DeviceCapacity) -> EvictionSet | None:
        """Choose the models to evict from this device now; note when the choice will change."""
        missing = self._missing(demand, device)
        return self._choose(demand, self._candidates(device.id), device.id, missing)

    def _choose(
        self, demand: Demand, candidates: Iterable[Reservation], device: str, missing: int
    ) -> EvictionSet | None:
        ready: list[Reservation] = []
        for reservation in candidates:
            if reservation.model == demand.model:
                continue
            at = eviction.may_leave_at(reservation, demand.since, self._rules)
            if at is not None and at <= self._now:
                ready.append(reservation)
            elif at is not None:
                self._replan_at(at)
        return eviction.choose(ready, device, missing, self._now)

    def _claim(self, demand: Demand, device: DeviceCapacity) -> None:
        """Keep what comes free on a device for the demand that has waited longest.

        Smaller demands that came later would take it piece by piece. One claim at a time, so that
        the other devices stay busy.
        """
        if self._may_claim(demand):
            self._ledger.take({device.id: demand.needs[device.kind]})

    def _may_claim(self, demand: Demand) -> bool:
        if self._now < demand.since + self._rules.patience:
            self._replan_at(demand.since + self._rules.patience)
            return False
        first, self._claimed = not self._claimed, True
        return first

    def _missing(self, demand: Demand, device: DeviceCapacity) -> int:
        return demand.needs[device.kind] - self._ledger.free(device.id) - self._coming[device.id]

    def _could_free(self, demand: Demand, device: DeviceCapacity) -> bool:
        """Return True if the demand would fit once every model that may be evicted has left."""
        return demand.needs[device.kind] <= self._ledger.obtainable(device)

    def _place_split(
        self, demand: Demand, devices: Sequence[DeviceCapacity], *, blocked: bool
    ) -> None:
        """Split a model that is too large for any one device over as few of a kind as possible,
        all of one machine.

        ``blocked``: there are devices that are not well; it may fit once they are.
        """
        for kind, need in demand.needs.items():
            machines = _by_machine(device for device in devices if device.kind == kind)
            most_parts = min(demand.spread, max(map(len, machines), default=0))
            for parts in range(2, most_parts + 1):
                total = need + (parts - 1) * demand.each_device
                for same in machines:
                    free = {each.id: self._ledger.free(each.id) for each in same}
                    if found := shares(total, free, parts):
                        self._load(demand, found)
                        return
                if any(self._split_by_eviction(demand, same, total, parts) for same in machines):
                    return
                largest = ({each.id: each.largest for each in same} for same in machines)
                blocked = blocked or any(shares(total, each, parts) for each in largest)
        if demand.urgent:
            self.plan.refusals.append(Refuse(demand.model, forever=not blocked))

    def _split_by_eviction(
        self, demand: Demand, machine: Sequence[DeviceCapacity], total: int, parts: int
    ) -> bool:
        """Make room for a split on devices of one machine, if that can be."""
        same = {each.id: each for each in machine}
        most = {each.id: self._ledger.obtainable(each) for each in machine}
        found = shares(total, most, parts)
        if not found:
            return False
        size = max(found.values())
        able = [each for each in same if most[each] >= size]
        if len(able) >= parts:  # then whichever of them are cheapest to free
            found = dict.fromkeys(able, size)
        self._make_room(demand, {same[each]: found[each] for each in found}, parts)
        return True

    def _make_room(self, demand: Demand, sizes: Mapping[DeviceCapacity, int], parts: int) -> None:
        """Free memory for so many parts of a demand on some of these devices, or claim it."""
        if not demand.urgent:
            return
        options = sorted(
            (
                (device, *self._part_option(replace(demand, needs={device.kind: size}), device))
                for device, size in sizes.items()
            ),
            key=lambda option: (option[1], option[0].id),
        )[:parts]
        places = {device.id: sizes[device] for device, _, _ in options}
        not_yet = any(cost == _NOT_YET for _, cost, _ in options)
        if not_yet and not self._may_claim(demand):
            self.plan.missing_bytes += sum(places.values())
            return
        for _, _, evictions in options:
            for reservation in evictions.reservations if evictions else ():
                self._evict(reservation, f"room for {demand.model}")
        if not_yet:
            self._ledger.take(places)
        else:
            self._await(demand, places)

    def _part_option(
        self, part: Demand, device: DeviceCapacity
    ) -> tuple[float, EvictionSet | None]:
        """Return the cost of memory for a part on this device, and the evictions that free it."""
        if self._missing(part, device) <= 0:
            return 0.0, None
        chosen = self._eviction_set(part, device)
        return (chosen.cost if chosen else _NOT_YET), chosen

    # ---- the plan's own bookkeeping --------------------------------------------------------------

    def _load(self, demand: Demand, devices: Mapping[str, int]) -> None:
        self._ledger.take(devices, demand.ram, demand.lasting_ram)
        self.plan.loads.append(Load(demand.model, demand.index, devices, demand.ram))

    def _await(self, demand: Demand, devices: Mapping[str, int]) -> None:
        self._ledger.take(devices, demand.ram, demand.lasting_ram)
        self.plan.waiting.append(Load(demand.model, demand.index, devices, demand.ram))

    def _evict(self, reservation: Reservation, reason: str) -> None:
        if reservation.id in self._evicted:
            return
        self._evicted.add(reservation.id)
        for device, size in reservation.devices.items():
            self._coming[device] = self._coming.get(device, 0) + size
        self.plan.evictions.append(Evict(reservation.id, reason))

    def _candidates(self, device: str) -> list[Reservation]:
        return [h for h in self._ledger.on(device) if h.id not in self._evicted]

    def _replan_at(self, at: float) -> None:
        if self.plan.replan_at is None or at < self.plan.replan_at:
            self.plan.replan_at = at


def _by_machine(devices: Iterable[DeviceCapacity]) -> list[list[DeviceCapacity]]:
    machines: dict[str, list[DeviceCapacity]] = {}
    for device in devices:
        machines.setdefault(device.node, []).append(device)
    return list(machines.values())
