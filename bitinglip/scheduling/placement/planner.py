"""What to load where, and what has to leave for it: a pure function from facts to a plan.

A model that others wait for gets room, in this order: memory that is free; memory that comes free
by itself; models that nobody uses, the cheapest to have back first; models in use, once they have
had their time and the wait has become long, by draining them. So clients that alternate between
models share each load among many requests instead of reloading for every one, and none waits for
ever.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bitinglip.scheduling.placement import eviction
from bitinglip.scheduling.placement.eviction import Choice, EvictionRules
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger, Reservation

_NOT_YET = float("inf")  #: the cost of room that nobody can make now


@dataclass(frozen=True, slots=True)
class Demand:
    """A model that should have one more replica."""

    model: str
    index: int  #: of the replica
    needs: Mapping[str, int]  #: device kind -> bytes; kinds that it may not go to are absent
    since: float  #: since when its oldest request waits
    urgent: bool = True  #: somebody waits for it; otherwise it takes free memory only
    level: int = 0
    spread: int = 1  #: over how many devices of a kind it may be split


@dataclass(frozen=True, slots=True)
class Load:
    model: str
    index: int
    devices: Mapping[str, int]  #: device id -> bytes to reserve


@dataclass(frozen=True, slots=True)
class Evict:
    """Let a replica finish what it runs, then stop it."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """There is no room for this model; ``forever``, or as long as others hold theirs."""

    model: str
    forever: bool


@dataclass(slots=True)
class Plan:
    loads: list[Load] = field(default_factory=list)
    evictions: list[Evict] = field(default_factory=list)
    refusals: list[Refuse] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  #: models whose room is being made
    replan_at: float | None = None  #: when time alone will have changed the answer
    short: int = 0  #: bytes that are missing for models somebody waits for


def plan(ledger: Ledger, demands: Iterable[Demand], now: float, rules: EvictionRules) -> Plan:
    """What to do now. ``ledger`` is used up: what the plan promises is taken from it."""
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
        self._gone: set[str] = set()  #: holdings that this plan evicts
        self._claimed = False

    # ---- what leaves by itself -----------------------------------------------------------------

    def expire(self) -> None:
        """Unload what nobody has used for as long as it is kept."""
        for reservation in self._ledger.reservations:
            if reservation.keep_alive is None or reservation.pinned or not reservation.idle:
                continue
            ends = reservation.used_at + reservation.keep_alive
            if ends <= self._now:
                self._evict(reservation, f"not used for {reservation.keep_alive:g} s")
            else:
                self._look_again(ends)

    def evict_for_external_use(self) -> None:
        """Where another program has taken memory that was ours, unused models give way."""
        for device in self._ledger.devices:
            missing = -(self._ledger.free(device.id) + self._coming[device.id])
            if missing <= 0:
                continue
            idle = [h for h in self._candidates(device.id) if h.idle and not h.pinned]
            freed = 0
            for reservation in sorted(idle, key=lambda h: eviction.cost(h, self._now)):
                if freed < missing:
                    freed += reservation.devices[device.id]
                    self._evict(reservation, "another program took its memory")

    # ---- what somebody waits for ---------------------------------------------------------------

    def place(self, demand: Demand) -> None:
        rooms = [room for room in self._ledger.devices if room.kind in demand.needs]
        fitting = [room for room in rooms if demand.needs[room.kind] <= room.largest]
        if not fitting:
            self._place_split(demand, rooms)
            return
        if self._load_into_free(demand, fitting):
            return
        if not demand.urgent:
            return
        if self._await_leaving(demand, fitting) or self._make_room(demand, fitting):
            return
        possible = [room for room in fitting if self._could_free(demand, room)]
        if not possible:
            self.plan.refusals.append(Refuse(demand.model, forever=False))
            return
        room = min(possible, key=lambda room: self._missing(demand, room))
        self.plan.short += self._missing(demand, room)
        self._claim(demand, room)

    def _load_into_free(self, demand: Demand, rooms: Sequence[DeviceCapacity]) -> bool:
        """On the kind it likes best; away from its other replicas; where least is left over."""
        kinds = list(demand.needs)
        free = [room for room in rooms if demand.needs[room.kind] <= self._ledger.free(room.id)]
        if not free:
            return False

        def rank(room: DeviceCapacity) -> tuple[int, int, int]:
            same = sum(h.model == demand.model for h in self._ledger.on(room.id))
            same += sum(
                load.model == demand.model and room.id in load.devices for load in self.plan.loads
            )
            return kinds.index(room.kind), same, self._ledger.free(room.id)

        room = min(free, key=rank)
        self._load(demand, {room.id: demand.needs[room.kind]})
        return True

    def _await_leaving(self, demand: Demand, rooms: Sequence[DeviceCapacity]) -> bool:
        """What is under way already makes room for it: hold on to that place."""
        for room in rooms:
            need = demand.needs[room.kind]
            if need <= self._ledger.free(room.id) + self._coming[room.id]:
                self._ledger.take({room.id: need})
                self.plan.waiting.append(demand.model)
                return True
        return False

    def _make_room(self, demand: Demand, rooms: Sequence[DeviceCapacity]) -> bool:
        choices = [
            (choice.cost, room.id, choice)
            for room in rooms
            if (choice := self._choice(demand, room))
        ]
        if not choices:
            return False
        _, device, choice = min(choices, key=lambda each: each[:2])
        for reservation in choice.reservations:
            self._evict(reservation, f"room for {demand.model}")
        room = next(room for room in rooms if room.id == device)
        self._ledger.take({device: demand.needs[room.kind]})
        self.plan.waiting.append(demand.model)
        return True

    def _choice(self, demand: Demand, room: DeviceCapacity) -> Choice | None:
        """Who could leave this device for the demand now; notes when that will change."""
        ready: list[Reservation] = []
        for reservation in self._candidates(room.id):
            if reservation.model == demand.model:
                continue
            at = eviction.may_leave_at(reservation, demand.since, self._rules)
            if at is not None and at <= self._now:
                ready.append(reservation)
            elif at is not None:
                self._look_again(at)
        return eviction.choose(ready, room.id, self._missing(demand, room), self._now)

    def _claim(self, demand: Demand, room: DeviceCapacity) -> None:
        """Who has waited longest keeps what comes free on a device: smaller ones that came later
        would take it piece by piece. One claim at a time, so that the other devices stay busy."""
        if self._may_claim(demand):
            self._ledger.take({room.id: demand.needs[room.kind]})

    def _may_claim(self, demand: Demand) -> bool:
        if self._now < demand.since + self._rules.patience:
            self._look_again(demand.since + self._rules.patience)
            return False
        first, self._claimed = not self._claimed, True
        return first

    def _missing(self, demand: Demand, room: DeviceCapacity) -> int:
        return demand.needs[room.kind] - self._ledger.free(room.id) - self._coming[room.id]

    def _could_free(self, demand: Demand, room: DeviceCapacity) -> bool:
        """Whether the demand would fit if all that may ever leave had left."""
        pinned = sum(h.devices[room.id] for h in self._ledger.on(room.id) if h.pinned)
        return demand.needs[room.kind] <= room.usable - pinned

    def _place_split(self, demand: Demand, rooms: Sequence[DeviceCapacity]) -> None:
        """Too large for any one device: in even parts over several of a kind, if it can be."""
        blocked = False
        for kind, need in demand.needs.items():
            same = [room for room in rooms if room.kind == kind]
            for parts in range(2, min(demand.spread, len(same)) + 1):
                part = replace(demand, needs={kind: -(-need // parts)})
                able = [room for room in same if self._could_free(part, room)]
                if len(able) >= parts:
                    self._place_parts(part, able, parts)
                    return
                largest = [room for room in same if part.needs[kind] <= room.largest]
                blocked = blocked or len(largest) >= parts
        if demand.urgent:
            self.plan.refusals.append(Refuse(demand.model, forever=not blocked))

    def _place_parts(self, part: Demand, rooms: Sequence[DeviceCapacity], parts: int) -> None:
        """One part on each of as many devices as it takes: load, or make room, or claim it."""
        (size,) = part.needs.values()
        free = [room for room in rooms if size <= self._ledger.free(room.id)]
        if len(free) >= parts:
            free.sort(key=lambda room: -self._ledger.free(room.id))
            self._load(part, {room.id: size for room in free[:parts]})
            return
        if not part.urgent:
            return
        options = sorted((self._room_for(part, room) for room in rooms), key=lambda each: each[:2])
        chosen = options[:parts]
        if chosen[-1][0] == _NOT_YET and not self._may_claim(part):
            self.plan.short += size * parts
            return
        for _, device, choice in chosen:
            for reservation in choice.reservations if choice else ():
                self._evict(reservation, f"room for {part.model}")
            self._ledger.take({device: size})

    def _room_for(self, part: Demand, room: DeviceCapacity) -> tuple[float, str, Choice | None]:
        """What room for a part costs on this device."""
        if self._missing(part, room) <= 0:
            return 0.0, room.id, None
        choice = self._choice(part, room)
        return (choice.cost if choice else _NOT_YET), room.id, choice

    # ---- the books of the plan -----------------------------------------------------------------

    def _load(self, demand: Demand, devices: Mapping[str, int]) -> None:
        self._ledger.take(devices)
        self.plan.loads.append(Load(demand.model, demand.index, devices))

    def _evict(self, reservation: Reservation, reason: str) -> None:
        if reservation.id in self._gone:
            return
        self._gone.add(reservation.id)
        for device, size in reservation.devices.items():
            self._coming[device] = self._coming.get(device, 0) + size
        self.plan.evictions.append(Evict(reservation.id, reason))

    def _candidates(self, device: str) -> list[Reservation]:
        return [h for h in self._ledger.on(device) if h.id not in self._gone]

    def _look_again(self, at: float) -> None:
        if self.plan.replan_at is None or at < self.plan.replan_at:
            self.plan.replan_at = at
