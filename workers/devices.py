"""What this machine computes on and how much of it is in use: asked of the driver and the system,
never through torch, never with a CUDA context."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import psutil

from workers.memory_limit import memory_limit, memory_used

_CPU_SHARE = 0.8  #: of the machine's memory that models may have, unless it is set


@dataclass(frozen=True, slots=True)
class Device:
    """One card, the processor, or a made-up one."""

    id: str  #: as CUDA_VISIBLE_DEVICES takes it; "cpu"; "fake0", "fake1"
    name: str
    kind: str  #: "cuda", "cpu" or "fake"
    memory_bytes: int  #: what may be planned with: a card's memory, a part of the machine's
    physical_bytes: int  #: what is really there


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a device."""

    used_bytes: int  #: by everybody
    processes: Mapping[int, int] = field(default_factory=dict)  #: pid -> bytes, where it is told
    utilisation: float | None = None  #: 0 to 1
    temperature_c: float | None = None
    power_w: float | None = None


class Driver(Protocol):
    """Who knows the devices of one kind."""

    def devices(self) -> Sequence[Device]: ...
    def read(self, device: Device, pids: Iterable[int]) -> Reading | None:
        """None if the device does not answer."""
        ...

    def close(self) -> None: ...


class Devices:
    """All devices; what they are is asked once, how full they are each time."""

    def __init__(self, drivers: Sequence[Driver], note: str | None = None) -> None:
        self._drivers = [(device, driver) for driver in drivers for device in driver.devices()]
        self._owners = drivers
        self.note = note  #: what an operator should know about them

    @classmethod
    def find(
        cls, fake: Sequence[tuple[str, int]] = (), cpu_memory_bytes: int | None = None
    ) -> Self:
        """The machine's, accelerators first; or made-up ones (name, bytes) in their place."""
        if fake:
            return cls([_MadeUp(fake)], "the devices are made up (devices.fake)")
        from workers.nvidia import Nvidia

        nvidia = Nvidia.open()
        if nvidia is None:
            return cls([_Processor(cpu_memory_bytes)], "no NVIDIA driver: models run on the CPU")
        return cls([nvidia, _Processor(cpu_memory_bytes)])

    def list(self) -> tuple[Device, ...]:
        return tuple(device for device, _ in self._drivers)

    def read(self, pids: Iterable[int] = ()) -> dict[str, Reading]:
        """How full each device is, and what these processes have of it; blocks for milliseconds."""
        pids = list(pids)
        readings = ((device.id, driver.read(device, pids)) for device, driver in self._drivers)
        return {device: reading for device, reading in readings if reading is not None}

    def close(self) -> None:
        for driver in self._owners:
            driver.close()


class _MadeUp:
    def __init__(self, fake: Sequence[tuple[str, int]]) -> None:
        self._fake = fake

    def devices(self) -> Sequence[Device]:
        return [
            Device(f"fake{number}", name, "fake", size, size)
            for number, (name, size) in enumerate(self._fake)
        ]

    def read(self, device: Device, pids: Iterable[int]) -> Reading | None:  # noqa: ARG002
        return Reading(0)

    def close(self) -> None:
        pass


class _Processor:
    """The CPU and its memory: the machine's, or what a container may have of it."""

    def __init__(self, budget: int | None) -> None:
        self._budget = budget
        psutil.cpu_percent()  # the first call only starts the measurement

    def devices(self) -> Sequence[Device]:
        there = memory_limit() or psutil.virtual_memory().total
        budget = min(there, self._budget or int(there * _CPU_SHARE))
        return [Device("cpu", f"CPU, {os.cpu_count()} cores", "cpu", budget, there)]

    def read(self, device: Device, pids: Iterable[int]) -> Reading | None:
        used = memory_used()
        if used is None:
            memory = psutil.virtual_memory()
            used = memory.total - memory.available
        processes = {pid: size for pid in pids if (size := _resident(pid)) is not None}
        busy = psutil.cpu_percent() / 100
        return Reading(min(used, device.physical_bytes), processes, utilisation=busy)

    def close(self) -> None:
        pass


def _resident(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
