"""Who has how much memory of which device: every load is a reservation first. Pure facts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeviceCapacity:
    """One device as the planner sees it; all in bytes."""

    id: str
    kind: str  #: "cuda", "cpu" or "fake"
    memory: int  #: what may be planned with
    physical: int = 0  #: what is really there; 0: the same
    foreign: int = 0  #: held by programs that are not ours
    headroom: int = 0  #: kept free, for the driver and fragments

    @property
    def usable(self) -> int:
        """What our models may have in all, as things are."""
        physical = self.physical or self.memory
        return max(0, min(self.memory, physical - self.foreign) - self.headroom)

    @property
    def largest(self) -> int:
        """What our models could have if no other program ran."""
        return max(0, min(self.memory, self.physical or self.memory) - self.headroom)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A replica and the memory reserved for it."""

    id: str
    model: str
    devices: Mapping[str, int]  #: device id -> bytes
    state: str  #: loading, ready, draining (takes no work) or stopping
    in_flight: int = 0
    waiting: int = 0  #: requests that wait for its model
    pinned: bool = False
    loaded_at: float = 0.0
    used_at: float = 0.0  #: when it last had work
    load_seconds: float = 1.0  #: what it would cost to have it back
    keep_alive: float | None = None  #: seconds without work after which it leaves; None: never

    @property
    def idle(self) -> bool:
        return self.state == "ready" and not self.in_flight and not self.waiting

    @property
    def leaving(self) -> bool:
        return self.state in ("draining", "stopping")


@dataclass(slots=True)
class Ledger:
    """The sums. ``free`` may be negative when a foreign program has taken what was ours."""

    devices: Sequence[DeviceCapacity]
    reservations: Sequence[Reservation]
    _free: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._free = {device.id: device.usable for device in self.devices}
        for reservation in self.reservations:
            for device, taken in reservation.devices.items():
                if device in self._free:
                    self._free[device] -= taken

    def free(self, device: str) -> int:
        return self._free[device]

    def take(self, devices: Mapping[str, int]) -> None:
        """Reserve for somebody who will come."""
        for device, taken in devices.items():
            self._free[device] -= taken

    def on(self, device: str) -> Iterable[Reservation]:
        """The holdings on a device."""
        return (reservation for reservation in self.reservations if device in reservation.devices)

    def leaving(self, device: str) -> int:
        """What will come free on a device by itself: drains and stops that are under way."""
        return sum(h.devices[device] for h in self.on(device) if h.leaving)
