"""The planner decides what to load where and which models to evict: a pure function of the facts.

A model with waiting requests gets memory in this order: memory that is free; memory that running
evictions will free; idle models, the cheapest to load again first; models in use, by draining them,
once they have had their minimum residency and the wait has become long. So clients that alternate
between models share each load among many requests instead of reloading for every one, and no model
waits for ever.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bitinglip.scheduling.placement import eviction, model_files
from bitinglip.scheduling.placement.eviction import EvictionRules, EvictionSet
from bitinglip.scheduling.placement.idle_evictions import IdleEvictions
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger, Reservation
from bitinglip.scheduling.placement.plan import Demand, Evict, Load, Plan, Refuse
from bitinglip.scheduling.placement.split import shares

__all__ = ["Demand", "Evict", "Load", "Plan", "Refuse", "plan"]

_RAM = "ram"  #: stands for the RAM of reservations on any device while models are chosen for it
_OTHERS_SECONDS = 60.0  #: that requests wait for memory of other gateways, before they are refused
_NOT_YET = float("inf")  #: the cost of memory that no eviction can free now


def plan(ledger: Ledger, demands: Iterable[Demand], now: float, rules: EvictionRules) -> Plan:
    """Decide what to do now. It changes ``ledger``, which is of no use afterwards.

    Nodes that have the files of a model, and then those whose disks have room for them, are
    preferred for it, as long as that changes nothing else: every model that would be loaded is, and
    none is evicted that would stay.
    """
    ordered = sorted(demands, key=lambda d: (not d.urgent, -d.level, d.since, d.model))
    if not any(model_files.differ(demand, ledger.devices) for demand in ordered):
        return _plan(_Planner(ledger, now, rules), ordered)
    near = _plan(_Planner(ledger.copy(), now, rules, to_files=True), ordered)
    plain = _plan(_Planner(ledger, now, rules), ordered)
    return near if _outcome(near) == _outcome(plain) else plain


def _plan(planner: "_Planner", demands: Iterable[Demand]) -> Plan:
    planner.expire()
    planner.evict_for_external_use()
    for demand in demands:
        planner.place(demand)
    planner.give()
    return planner.plan


def _outcome(plan: Plan) -> tuple[object, ...]:
    """Return what a plan does, but for where it loads."""
    loads, waiting = ({(e.model, e.index) for e in each} for each in (plan.loads, plan.waiting))
    return loads, waiting, plan.evictions, plan.refusals, plan.wishes, plan.missing_bytes


class _Planner(IdleEvictions):
    def __init__(
        self, ledger: Ledger, now: float, rules: EvictionRules, *, to_files: bool = False
    ) -> None:
        """``to_files``: a node that has the files comes before one that would have to copy them,
        and this before one that has no room for them."""
        super().__init__(ledger, now, rules)
        self._claimed = False
        self._to_files = to_files

    # ---- demands ---------------------------------------------------------------------------------

    def place(self, demand: Demand) -> None:
        """Load the model, or free memory for it, or refuse it."""
        of_kind = model_files.without_full(demand, self._ledger)
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
        if self._load_into_free(demand, fitting) or self._await_node(demand, fitting):
            return
        if not demand.urgent:
            return
        if self._await_leaving(demand, fitting) or self._free_by_eviction(demand, fitting):
            return
        if self._ask_others(demand, fitting):
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
        screen, where its files are, or have room, and least is left over."""
        kinds = list(demand.needs)
        free = [each for each in devices if demand.needs[each.kind] <= self._free(each)]
        if not free:
            return False

        def rank(device: DeviceCapacity) -> tuple[int, int, bool, int, int]:
            same = sum(h.model == demand.model for h in self._ledger.on(device.id))
            same += sum(
                load.model == demand.model and device.id in load.devices for load in self.plan.loads
            )
            kind, left = kinds.index(device.kind), self._ledger.free(device.id)
            return kind, same, device.display, self._lacks_files(demand, device), left

        device = min(free, key=rank)
        self._load(demand, {device.id: demand.needs[device.kind]})
        return True

    def _lacks_files(self, demand: Demand, device: DeviceCapacity) -> int:
        """Return what a node lacks of the files, if that matters; see ``model_files.lack``."""
        return model_files.lack(demand, device) if self._to_files else 0

    def _free(self, device: DeviceCapacity) -> int:
        return 0 if self._now < device.refused_until else self._ledger.free(device.id)

    def _await_node(self, demand: Demand, devices: Sequence[DeviceCapacity]) -> bool:
        """Wait for a node that has just refused memory, until it has told who has it."""
        until = [
            device.refused_until
            for device in devices
            if self._now < device.refused_until
            and demand.needs[device.kind] <= self._ledger.free(device.id)
        ]
        if until:
            self._replan_at(min(until))
        return bool(until)

    def _ask_others(self, demand: Demand, devices: Sequence[DeviceCapacity]) -> bool:
        """Wish for memory of other gateways, if that of their idle models and ours is enough; wait
        a while for models of theirs that are in use."""
        until = demand.since + _OTHERS_SECONDS
        if self._now >= until:
            return False
        missing = {
            device: self._missing(demand, device) - self._own_idle(device)
            for device in devices
            if device.elsewhere.reserved
        }
        idle = [each for each, size in missing.items() if 0 < size <= each.elsewhere.idle]
        if idle:
            device = min(idle, key=lambda each: missing[each])
            wished = self.plan.wishes.get(device.id, 0)
            self.plan.wishes[device.id] = wished + missing[device]
        elif any(self._could_free(demand, device) for device in devices):
            return False  # by models of ours that are in use
        else:
            theirs = [
                each
                for each, size in missing.items()
                if size <= each.elsewhere.reserved - each.elsewhere.pinned
            ]
            if not theirs:
                return False
            device = min(theirs, key=lambda each: missing[each])
        self._replan_at(until)
        self.plan.missing_bytes += self._missing(demand, device)
        self._claim(demand, device)
        return True

    def _own_idle(self, device: DeviceCapacity) -> int:
        """Return the bytes of our idle models on a device that may be evicted now."""
        there = self._candidates(device.id)
        able = (h for h in there if eviction.may_give(h, self._now, self._rules))
        return sum(h.devices[device.id] for h in able)

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
        for device in sorted(devices, key=lambda device: self._lacks_files(demand, device)):
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
            nearest = sorted(machines, key=lambda same: self._lacks_files(demand, same[0]))
            most_parts = min(demand.spread, max(map(len, machines), default=0))
            for parts in range(2, most_parts + 1):
                total = need + (parts - 1) * demand.each_device
                for same in nearest:
                    free = {each.id: self._free(each) for each in same}
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


def _by_machine(devices: Iterable[DeviceCapacity]) -> list[list[DeviceCapacity]]:
    machines: dict[str, list[DeviceCapacity]] = {}
    for device in devices:
        machines.setdefault(device.node, []).append(device)
    return list(machines.values())
