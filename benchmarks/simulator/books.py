"""Record what really is on each device at every moment, to measure all policies by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class _Device:
    size: int
    held: int = 0
    working: int = 0  #: workers that have work
    memory_seconds: float = 0.0
    busy_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Use:
    """Means over the whole run, from 0 to 1."""

    memory: float
    busy: float  #: the part of the time in which at least one worker had work


class Books:
    """``over_commits`` counts the changes after which a device held, or had promised, more than
    it has; ``promised`` asks the policy what its own ledger says is free, by device."""

    def __init__(self, devices: Mapping[str, int], clock: Callable[[], float]) -> None:
        self._devices = {name: _Device(size) for name, size in devices.items()}
        self._clock = clock
        self._began = self._at = clock()
        self._held: dict[object, Mapping[str, int]] = {}
        self.promised: Callable[[], Mapping[str, int]] = dict
        self.over_commits = 0
        self.loads = 0
        self.load_seconds = 0.0
        self.evictions = 0

    def take(self, owner: object, held: Mapping[str, int]) -> None:
        self._advance()
        self._held[owner] = held
        for device, size in held.items():
            self._devices[device].held += size
        self.check()

    def give_back(self, owner: object) -> None:
        self._advance()
        for device, size in self._held.pop(owner).items():
            self._devices[device].held -= size
        self.check()

    def works(self, owner: object, *, begins: bool) -> None:
        """Note that a worker has got its first job, or has ended its last."""
        self._advance()
        for device in self._held[owner]:
            self._devices[device].working += 1 if begins else -1

    def check(self) -> None:
        full = any(device.held > device.size for device in self._devices.values())
        if full or any(free < 0 for free in self.promised().values()):
            self.over_commits += 1

    def use(self) -> dict[str, Use]:
        self._advance()
        seconds = max(self._at - self._began, 1e-9)
        return {
            name: Use(each.memory_seconds / each.size / seconds, each.busy_seconds / seconds)
            for name, each in self._devices.items()
        }

    def _advance(self) -> None:
        now = self._clock()
        passed, self._at = now - self._at, now
        for device in self._devices.values():
            device.memory_seconds += device.held * passed
            device.busy_seconds += passed if device.working else 0.0
