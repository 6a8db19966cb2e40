"""The ledger adds up memory by device: capacity, reservations and what is free. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace


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

    @property
    def usable(self) -> int:
        """Return the bytes that all our models together may hold now."""
        physical = self.physical or self.memory
        return max(0, min(self.memory, physical - self.other_bytes - self.headroom))

    @property
    def largest(self) -> int:
        """Return the bytes that our models could hold if no other program ran."""
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
    ram: int | None = field(init=False)  #: bytes of RAM that the machine has; None: not known
    _free: dict[str, int] = field(init=False)
    _special: list[DeviceCapacity] = field(init=False)
    _ram_device: str | None = field(init=False)
    _ram_free: int = field(init=False)
    _ram_planned: int = field(init=False, default=0)  #: what planned loads take for their time only

    def __post_init__(self) -> None:
        self._free = {device.id: device.usable for device in self.devices}
        self._special = [device for device in self.devices if device.exclusive or device.shares]
        if self._special:
            self.reservations = [
                replace(each, devices=self._taken(each.devices)) for each in self.reservations
            ]
        host = next((device for device in self.devices if device.kind == "cpu"), None)
        self._ram_device = host.id if host is not None else None
        self.ram = None if host is None else host.physical or host.memory
        self._ram_free = (self.ram or 0) - (host.other_bytes if host is not None else 0)
        for reservation in self.reservations:
            for device, taken in reservation.devices.items():
                if device in self._free:
                    self._free[device] -= taken
            self._ram_free -= self.ram_of(reservation)

    def free(self, device: str) -> int:
        free = self._free[device]
        return min(free, self._ram_free) if device == self._ram_device else free

    @property
    def ram_free(self) -> int | None:
        """Return the bytes of RAM that are free; None where no device is the processor."""
        return None if self._ram_device is None else self._ram_free

    def ram_of(self, reservation: Reservation) -> int:
        """Return the RAM of a reservation, that on the processor included."""
        return reservation.ram + reservation.devices.get(self._ram_device or "", 0)

    def ram_coming(self) -> int:
        """Return the bytes of RAM that running and planned loads and running stops will free."""
        return self._ram_planned + sum(
            self.ram_of(each) if each.leaving else each.ram - each.lasting_ram
            for each in self.reservations
            if each.leaving or each.state == "loading"
        )

    def ram_obtainable(self) -> int | None:
        """Return the bytes of RAM that could be free without models that may be evicted."""
        if self.ram_free is None:
            return None
        kept = (h for h in self.reservations if h.state == "ready" and not h.pinned)
        return self._ram_free + self.ram_coming() + sum(self.ram_of(each) for each in kept)

    def take(self, devices: Mapping[str, int], ram: int = 0, lasting_ram: int = 0) -> None:
        """Subtract the memory of a planned load."""
        devices = self._taken(devices)
        self._ram_planned += ram - lasting_ram
        self._ram_free -= ram + devices.get(self._ram_device or "", 0)
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
        pinned = (h.devices[device.id] for h in self.on(device.id) if h.pinned and not h.leaving)
        return device.usable - sum(pinned)
