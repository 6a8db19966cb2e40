"""The ledger adds up memory by device: capacity, reservations and what is free. Pure."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from workers.devices.device import NOTHING_ELSEWHERE, Elsewhere


@dataclass(frozen=True, slots=True)
class DeviceCapacity:
    """Describes a device as the planner sees it, in bytes."""

    id: str
    kind: str  #: "cuda", "cpu" or "fake"
    memory: int  #: what may be planned with
    physical: int = 0  #: what is really there; 0: the same
    other_bytes: int = 0  #: held by other programs
    headroom: int = 0  #: kept free, for the driver and fragments
    name: str = ""  #: the driver's name of it
    short_since: float = float("-inf")  #: when reserved memory began to be missing, if it does
    reason: str | None = None  #: why nothing new is planned there; None if it is well
    doubtful: bool = False  #: it may be well again in a moment
    exclusive: bool = False  #: it takes one worker at a time
    display: bool = False  #: a screen hangs on it, which long computations hold up
    shares: str | None = None  #: the device whose memory this one uses, too: they are one budget
    node: str = ""  #: the machine of a cluster that it is in; no model is split over several
    elsewhere: Elsewhere = NOTHING_ELSEWHERE  #: what other gateways have of it
    refused_until: float = float("-inf")  #: its node has refused memory; nothing goes there before
    files: frozenset[str] = frozenset()  #: the models whose files its node has copies of
    copy_room: int | None = None  #: bytes of copies that its node could take; None: unknown
    full_for: frozenset[str] = frozenset()  #: models that its node's disk had no room for

    @property
    def usable(self) -> int:
        """Return the bytes that all our models together may hold now."""
        if self.exclusive and self.elsewhere.reserved:
            return 0
        physical = self.physical or self.memory
        ours = min(self.memory, physical - self.other_bytes - self.headroom)
        return max(0, ours - self.elsewhere.reserved)

    @property
    def largest(self) -> int:
        """Return the bytes that our models could hold if nobody else used it."""
        return max(0, min(self.memory, (self.physical or self.memory) - self.headroom))


@dataclass(frozen=True, slots=True)
class Reservation:
    """Names a replica and the memory that is reserved for it."""

    id: str
    model: str
    devices: Mapping[str, int]  #: device id -> bytes
    state: str  #: loading, ready, draining (takes no work), stopping or stuck (does not end)
    in_flight: int = 0
    waiting: int = 0  #: requests that wait for its model
    pinned: bool = False
    loaded_at: float = 0.0
    used_at: float = 0.0  #: when it last had work
    load_seconds: float = 1.0  #: how long loading it again would take
    ram: int = 0  #: bytes of RAM beside its devices: while it loads, and of offloaded weights
    lasting_ram: int = 0  #: what of that it keeps once it is loaded
    keep_alive: float | None = None  #: idle seconds after which it is evicted; None: never

    @property
    def idle(self) -> bool:
        return self.state == "ready" and not self.in_flight and not self.waiting

    @property
    def leaving(self) -> bool:
        return self.state in ("draining", "stopping")


@dataclass(slots=True)
class Ledger:
    """Adds up memory by device. ``free`` is negative when another program has taken our memory."""

    devices: Sequence[DeviceCapacity]
    reservations: Sequence[Reservation]
    _free: dict[str, int] = field(init=False)
    _special: list[DeviceCapacity] = field(init=False)
    _node: dict[str, str] = field(init=False)  #: by device
    _hosts: dict[str, DeviceCapacity] = field(init=False)  #: processors by node
    _ram_free: dict[str, int] = field(init=False)  #: by node
    _ram_planned: dict[str, int] = field(init=False)  #: what planned loads take for their time only
    _pinned: dict[str, int] = field(init=False)  #: by device, what no eviction frees
    _on_node: dict[str, list[Reservation]] = field(init=False)

    def __post_init__(self) -> None:
        self._free = {device.id: device.usable for device in self.devices}
        self._special = [device for device in self.devices if device.exclusive or device.shares]
        if self._special:
            self.reservations = [
                replace(each, devices=self._taken(each.devices)) for each in self.reservations
            ]
        self._node = {device.id: device.node for device in self.devices}
        self._hosts = {device.node: device for device in self.devices if device.kind == "cpu"}
        self._ram_free = {
            node: (host.physical or host.memory) - host.other_bytes - host.elsewhere.ram
            for node, host in self._hosts.items()
        }
        self._ram_planned = dict.fromkeys(self._hosts, 0)
        self._pinned, self._on_node = dict.fromkeys(self._free, 0), {}
        for reservation in self.reservations:
            stays = reservation.pinned and not reservation.leaving
            for device, taken in reservation.devices.items():
                if device in self._free:
                    self._free[device] -= taken
                    self._pinned[device] += taken if stays else 0
            node = self._node_of(reservation.devices)
            self._on_node.setdefault(node, []).append(reservation)
            if node in self._ram_free:
                self._ram_free[node] -= self.ram_of(reservation)

    def copy(self) -> "Ledger":
        """Return a ledger of its own with the same sums, from which other loads may be taken."""
        found = copy.copy(self)
        found._free, found._ram_free = dict(self._free), dict(self._ram_free)
        found._ram_planned = dict(self._ram_planned)
        return found

    def free(self, device: str) -> int:
        free, node = self._free[device], self._node[device]
        host = self._hosts.get(node)
        return min(free, self._ram_free[node]) if host and host.id == device else free

    def ram(self, node: str = "") -> int | None:
        """Return the bytes of RAM of a node; None where no device is the processor."""
        host = self._hosts.get(node)
        return None if host is None else host.physical or host.memory

    def ram_free(self, node: str = "") -> int | None:
        """Return the bytes of RAM that are free on a node; None where it is not known."""
        return self._ram_free.get(node)

    def ram_of(self, reservation: Reservation) -> int:
        """Return the RAM of a reservation, that on the processor included."""
        host = self._hosts.get(self._node_of(reservation.devices))
        return reservation.ram + (reservation.devices.get(host.id, 0) if host else 0)

    def ram_coming(self, node: str = "") -> int:
        """Return the bytes of a node's RAM that running and planned loads and running stops will
        free."""
        return self._ram_planned.get(node, 0) + sum(
            self.ram_of(each) if each.leaving else each.ram - each.lasting_ram
            for each in self.in_ram_of(node)
            if each.leaving or each.state == "loading"
        )

    def ram_obtainable(self, node: str = "") -> int | None:
        """Return the bytes of a node's RAM that could be free without models that may be
        evicted."""
        if (free := self.ram_free(node)) is None:
            return None
        kept = (h for h in self.in_ram_of(node) if h.state == "ready" and not h.pinned)
        return free + self.ram_coming(node) + sum(self.ram_of(each) for each in kept)

    def in_ram_of(self, node: str) -> Iterable[Reservation]:
        """Iterate over the reservations on a node."""
        return self._on_node.get(node, ())

    def _node_of(self, devices: Iterable[str]) -> str:
        return next((self._node[each] for each in devices if each in self._node), "")

    def take(self, devices: Mapping[str, int], ram: int = 0, lasting_ram: int = 0) -> None:
        """Subtract the memory of a planned load."""
        devices = self._taken(devices)
        if (host := self._hosts.get(node := self._node_of(devices))) is not None:
            self._ram_planned[node] += ram - lasting_ram
            self._ram_free[node] -= ram + devices.get(host.id, 0)
        for device, taken in devices.items():
            self._free[device] -= taken

    def _taken(self, devices: Mapping[str, int]) -> Mapping[str, int]:
        """Return what is taken where: all of an exclusive device, and of both that share memory."""
        taken = dict(devices)
        for device in self._special:
            if device.exclusive and device.id in devices:
                taken[device.id] = max(taken[device.id], device.usable)
            if device.shares is not None:
                size = devices.get(device.id, 0) + devices.get(device.shares, 0)
                if size:
                    taken[device.id] = taken[device.shares] = size
        return taken

    def on(self, device: str) -> Iterable[Reservation]:
        """Iterate over the reservations on a device."""
        return (reservation for reservation in self.reservations if device in reservation.devices)

    def idle_on(self, devices: Iterable[str]) -> list[Reservation]:
        """List the idle models on any of these devices, without pinned ones."""
        there = set(devices)
        return [h for h in self.reservations if h.idle and not h.pinned and there & set(h.devices)]

    def leaving(self, device: str) -> int:
        """Return the bytes that running drains and stops will free on a device."""
        return sum(h.devices[device] for h in self.on(device) if h.leaving)

    def obtainable(self, device: DeviceCapacity) -> int:
        """Return the bytes of a device that could be free without models that may be evicted."""
        return device.usable - self._pinned[device.id]
