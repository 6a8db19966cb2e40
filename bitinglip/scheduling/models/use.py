"""Tell apart who uses the memory of devices: our workers, other programs, workers just ended."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from bitinglip.scheduling.models.returns import MemoryReturns
from bitinglip.scheduling.models.state import Replica
from workers.devices import CPU, Device, DeviceUsage
from workers.devices.device import NOTHING_ELSEWHERE, Elsewhere, processor_of

#: How far the driver's figure for a process may be from the worker's own: a worker assumes a size
#: of its context, and the driver counts kernels, graphs and pinned memory that it does not know of.
_DRIVER_LESS, _DRIVER_MORE = 1 << 30, 3 << 30
_RISE = 256 * 1024 * 1024  #: of other programs' use, that tells why memory ran out


class MemoryUse:
    """Keeps the last look at each device, and tells other programs' memory from ours."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._readings: dict[str, DeviceUsage] = {}
        self._other_bytes: dict[str, int] = {}
        self._returns = MemoryReturns(clock)
        self._short_since: dict[str, float] = {}
        self._cards: set[str] = set()
        self._looked_at: dict[str, float] = {}
        self._held: dict[str, dict[str, int]] = {}  #: by replica and device
        self._held_elsewhere: dict[str, int] = {}  #: by other gateways' workers, by card

    def looked_at(self, device: str) -> float | None:
        """Return when a device has answered last, by the clock on the wall; None if never."""
        return self._looked_at.get(device)

    def reading(self, device: str) -> DeviceUsage | None:
        return self._readings.get(device)

    def update(
        self,
        readings: Mapping[str, DeviceUsage],
        replicas: Iterable[Replica],
        pids: Mapping[str, int],
        devices: Sequence[Device],
        elsewhere: Callable[[str], Elsewhere] = lambda _: NOTHING_ELSEWHERE,
    ) -> None:
        """Take over a look at the devices, given our workers and their process ids, and what other
        gateways have of a device."""
        self._cards = {device.id for device in devices if device.kind == "cuda"}
        with_sharing = _Sharing(devices)
        held: dict[str, list[int | None]] = {device: [] for device in readings}
        self._held = {}
        for replica in replicas:
            for device in with_sharing(replica.devices):
                if device in readings:
                    size = _held_by(replica, readings[device], pids.get(replica.id))
                    held[device].append(size)
                    self._note_held(replica, device, size)
            host = processor_of(next(iter(replica.devices), CPU))
            if host in readings and host not in with_sharing(replica.devices):
                resident = readings[host].processes.get(pids.get(replica.id, 0), 0)
                held[host].append(min(resident, replica.ram_bytes))
                self._note_held(replica, host, min(resident, replica.ram_bytes))
        for device, reading in readings.items():
            ours = [size or 0 for size in held[device]]
            theirs = elsewhere(device)
            self._expect_others_return(device, theirs.held)
            late = self._returns.outstanding(device, reading.used_bytes)
            other = max(0, reading.used_bytes - sum(ours) - late - theirs.held)
            if None in held[device] or theirs.unknown:  # one takes memory; nothing says how much
                other = min(other, self._other_bytes.get(device, 0))
            self._other_bytes[device] = other
        for device in self._other_bytes.keys() - readings.keys():
            del self._other_bytes[device]  # it does not answer: its last figure says nothing
        self._readings = dict(readings)
        self._looked_at |= {name: each.at for name, each in readings.items() if each.at is not None}

    def held(self, replica: str) -> Mapping[str, int]:
        """Return what a replica's process held at the last look, by device, as far as is known."""
        return self._held.get(replica, {})

    def _note_held(self, replica: Replica, device: str, size: int | None) -> None:
        if size is not None:
            self._held.setdefault(replica.id, {})[device] = size

    def expect_return(self, replica: Replica) -> None:
        """Expect the memory of a worker that has just ended, for which the next load waits."""
        pid = replica.worker.pid if replica.worker is not None else None
        for device in self._cards & replica.devices.keys() & self._readings.keys():
            reading = self._readings[device]
            held = _held_by(replica, reading, pid) or 0
            self._returns.expect(device, reading.used_bytes, min(held, reading.used_bytes))

    def _expect_others_return(self, device: str, held: int) -> None:
        """Expect what workers of other gateways held that have ended: it is no other program's."""
        if device not in self._cards:
            return
        before, self._held_elsewhere[device] = self._held_elsewhere.get(device, 0), held
        if held < before and device in self._readings:
            self._returns.expect(device, self._readings[device].used_bytes, before - held)

    def awaits_memory(self, replica: Replica) -> bool:
        """Return True if its devices are still to get memory of ended workers back."""
        return self._returns.awaited(replica.devices)

    def wait_again(self, replica: Replica) -> bool:
        """Let the next load wait once more for memory that is late; False if none is."""
        return self._returns.wait_again(replica.devices)

    def foreign_use_rose(self, replica: Replica) -> bool:
        """Return True if other programs have taken memory of its devices since its load began."""
        return any(
            self.other_bytes(device) > before + _RISE
            for device, before in replica.other_bytes.items()
        )

    def note_short(self, devices: Sequence[str]) -> None:
        """Note which devices lack memory that is reserved there, since other programs took it."""
        now = self._clock()
        self._short_since = {each: self._short_since.get(each, now) for each in devices}

    def short_since(self, device: str) -> float:
        """Return since when reserved memory of a device has been missing; now if it is not."""
        return self._short_since.get(device, self._clock())

    def other_bytes(self, device: str) -> int:
        """Return the bytes on a device that other programs hold."""
        return self._other_bytes.get(device, 0)


class _Sharing:
    """Adds to devices those whose memory is that of one of them, on each machine."""

    def __init__(self, devices: Sequence[Device]) -> None:
        nodes = {device.node for device in devices if device.unified}
        self._shared = [
            {
                each.id
                for each in devices
                if each.node == node and (each.unified or each.kind == "cpu")
            }
            for node in nodes
        ]

    def __call__(self, devices: Iterable[str]) -> set[str]:
        found = set(devices)
        return found.union(*(shared for shared in self._shared if shared & found))


def _held_by(replica: Replica, reading: DeviceUsage, pid: int | None) -> int | None:
    """Return the bytes that a replica holds on a device: the driver's figure for its process,
    else the worker's own; None if there is neither.

    In a container the driver may number processes as the host does, so that our number is
    another program's. Its figure counts only where it is near the worker's own.
    """
    if pid is None and replica.worker is None:
        return 0  # its process has not started
    told = reading.processes.get(pid) if pid is not None else None
    beat = replica.worker.heartbeat if replica.worker is not None else None
    if beat is None:
        return told
    own = beat.memory_bytes // len(replica.devices)
    if told is None or not own - _DRIVER_LESS <= told <= own + _DRIVER_MORE:
        return own
    return told
