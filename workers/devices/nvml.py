"""Asks the NVIDIA driver's library (NVML), without torch and never with a context.

Everything here may block for as long as the driver likes: ``cards`` asks it with a deadline.
"""

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from workers.devices.device import DeviceUsage
from workers.devices.events import Events

T = TypeVar("T")

#: bits of the reasons for low clocks: the card's own slow-downs, and the limit that is set
_SLOWED_BY = {"heat": 0x20 | 0x40, "power supply": 0x80, "power limit": 0x04}
_SLOW_DOWN, _UNTOLD = 0x08, "heat or power supply"  #: older cards do not tell which


@dataclass(frozen=True, slots=True)
class Driver:
    version: str
    cuda: tuple[int, int]  #: the newest CUDA that it runs


@dataclass(frozen=True, slots=True)
class Card:
    """Describes a card, or an instance of one that is partitioned (MIG)."""

    id: str  #: its index, or as CUDA_VISIBLE_DEVICES names it; for people
    pin: str  #: its full UUID: what CUDA_VISIBLE_DEVICES of a worker must say
    name: str
    memory_bytes: int  #: without what the driver keeps for itself; 0 where it shares the RAM
    handle: Any
    bus_id: str | None = None  #: its folder's name below /sys/bus/pci/devices
    capability: tuple[int, int] | None = None
    display: bool = False  #: a screen hangs on it
    unified: bool = False  #: it has no memory of its own
    exclusive: bool = False  #: it takes one process at a time
    prohibited: bool = False  #: it takes none
    repairs: Literal["none", "pending", "failed"] = "none"  #: spare memory in place of bad
    lanes: tuple[int, int] | None = None  #: PCIe lanes that it uses, and that it has


@dataclass(frozen=True, slots=True)
class Found:
    """Holds what the driver shows, of what CUDA_VISIBLE_DEVICES leaves to us."""

    driver: Driver
    count: int  #: of cards that it shows to all processes
    cards: tuple[Card, ...]
    silent: tuple[str, ...]  #: cards that do not answer, with the driver's words


class Nvml:
    """Connects to the driver. Its functions raise ``NVMLError`` of the library."""

    def __init__(
        self, nvml: Any, libraries: Sequence[Path] = (), *, memory_v2: bool = True
    ) -> None:
        """``nvml`` is pynvml, or what stands in for it; ``libraries``: where NVML may lie outside
        of the loader's path. ``memory_v2`` False: it is asked by the older call only (WSL).
        """
        self._nvml = nvml
        self._libraries = libraries
        self._memory_v2 = memory_v2
        self.is_open = False
        self.events = Events(nvml)
        self.error: type[Exception] = nvml.NVMLError

    def open(self) -> None:
        """Connect to the driver. Raises NVMLError."""
        if self.is_open:
            return
        try:
            self._nvml.nvmlInit()
        except self.error as error:
            if not self.is_absent(error) or not self._preload():
                raise
            self._nvml.nvmlInit()
        self.is_open = True

    def _preload(self) -> bool:
        """Load NVML from where it lies, so that its name is known to the loader."""
        for path in self._libraries:
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            return True
        return False

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.events.close()
            self.told(self._nvml.nvmlShutdown)

    def is_absent(self, error: Exception) -> bool:
        """True if NVML's library was not found."""
        return self._value(error) == int(self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def is_no_driver(self, error: Exception) -> bool:
        """True if there is no driver at all, or its kernel module is not loaded."""
        not_loaded = self._value(error) == int(self._nvml.NVML_ERROR_DRIVER_NOT_LOADED)
        return not_loaded or self.is_absent(error)

    def is_mismatch(self, error: Exception) -> bool:
        """True if the library and the kernel module are of different versions."""
        return self._value(error) == int(self._nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    def is_lost(self, error: Exception) -> bool:
        return self._value(error) == int(self._nvml.NVML_ERROR_GPU_IS_LOST)

    @staticmethod
    def _value(error: Exception) -> int | None:
        return getattr(error, "value", None)

    # ---- finding ---------------------------------------------------------------------------------

    def find(self, visible: str | None) -> Found:
        """Ask for the driver and its cards, and watch what they report.

        ``visible`` is CUDA_VISIBLE_DEVICES of this process.
        """
        nvml = self._nvml
        number = nvml.nvmlSystemGetCudaDriverVersion()
        version = str(nvml.nvmlSystemGetDriverVersion())
        driver = Driver(version, (number // 1000, number % 1000 // 10))
        silent: list[str] = []
        found: list[Card] = []
        count = nvml.nvmlDeviceGetCount()
        for name in visible_names(visible, count):
            try:
                found += self._cards(name)
            except self.error as error:
                silent.append(f"{name} ({error})")
        once: dict[str, Card] = {}
        for card in found:
            once.setdefault(card.pin, card)
        self.events.watch((card.pin, card.handle) for card in once.values())
        return Found(driver, count, tuple(once.values()), tuple(silent))

    def _cards(self, name: str) -> Iterator[Card]:
        """Return the cards that one entry of CUDA_VISIBLE_DEVICES names."""
        nvml = self._nvml
        if name.isdecimal():
            handle = nvml.nvmlDeviceGetHandleByIndex(int(name))
        elif name.startswith("MIG-"):
            yield self._card(name, nvml.nvmlDeviceGetHandleByUUID(name))
            return
        else:
            handle, name = self._by_uuid(name)
        if not self._is_partitioned(handle):
            yield self._card(name, handle)
            return
        # CUDA would show a worker the first instance only; by its UUID each can be had.
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except self.error:
                continue  # a place where no instance was made
            yield self._card(str(nvml.nvmlDeviceGetUUID(instance)), instance)

    def _by_uuid(self, start: str) -> tuple[Any, str]:
        """Return the card whose UUID begins so: CUDA takes beginnings, NVML does not.

        A lost card may raise at its index: the others are looked at all the same.
        """
        nvml = self._nvml
        why = nvml.NVMLError(nvml.NVML_ERROR_NOT_FOUND)
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = str(nvml.nvmlDeviceGetUUID(handle))
            except self.error as error:
                why = error
                continue
            if uuid.startswith(start):
                return handle, uuid
        raise why

    def _is_partitioned(self, handle: Any) -> bool:
        mode = self.told(lambda: self._nvml.nvmlDeviceGetMigMode(handle)[0])
        return bool(mode == self._nvml.NVML_DEVICE_MIG_ENABLE)

    def _card(self, name: str, handle: Any) -> Card:
        nvml = self._nvml
        memory = self._memory(handle)
        bus = self.told(lambda: str(nvml.nvmlDeviceGetPciInfo(handle).busId))
        mode = self.told(lambda: nvml.nvmlDeviceGetComputeMode(handle))
        capability = self.told(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
        return Card(
            id=name,
            pin=self.told(lambda: str(nvml.nvmlDeviceGetUUID(handle))) or name,
            name=str(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=memory[0] if memory else 0,
            handle=handle,
            bus_id=bus and bus.lower()[-12:],  # sysfs writes the domain with four digits
            capability=capability and (int(capability[0]), int(capability[1])),
            display=bool(self.told(lambda: nvml.nvmlDeviceGetDisplayActive(handle))),
            unified=memory is None,
            exclusive=mode == nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS,
            prohibited=mode == nvml.NVML_COMPUTEMODE_PROHIBITED,
            repairs=self.told(lambda: self._repairs(handle)) or "none",
            lanes=self.told(lambda: self._lanes(handle)),
        )

    def _repairs(self, handle: Any) -> Literal["none", "pending", "failed"]:
        *_, pending, failed = self._nvml.nvmlDeviceGetRemappedRows(handle)
        return "failed" if failed else "pending" if pending else "none"

    def _lanes(self, handle: Any) -> tuple[int, int]:
        used = self._nvml.nvmlDeviceGetCurrPcieLinkWidth(handle)
        return int(used), int(self._nvml.nvmlDeviceGetMaxPcieLinkWidth(handle))

    def _slowed(self, handle: Any) -> tuple[str, ...]:
        """Return what keeps the card's clocks down, beside having nothing to do."""
        mask = int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        found = tuple(word for word, bits in _SLOWED_BY.items() if mask & bits)
        return found or ((_UNTOLD,) if mask & _SLOW_DOWN else ())

    # ---- looks -----------------------------------------------------------------------------------

    def usage(self, card: Card) -> DeviceUsage:
        """Look at a card. Raises NVMLError if it does not answer: it fell off the bus, say."""
        nvml, handle = self._nvml, card.handle
        memory = self._memory(handle)
        # What cannot be is not told: under WSL the figures of some drivers have no bound.
        used = memory[1] if memory and memory[1] <= card.memory_bytes else 0
        share = self.told(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu))
        heat = nvml.NVML_TEMPERATURE_GPU
        milliwatts = self.told(lambda: float(nvml.nvmlDeviceGetPowerUsage(handle)))
        processes = self.told(lambda: self._processes(handle)) or {}
        most = card.memory_bytes or None
        return DeviceUsage(
            used_bytes=used,
            processes={pid: size for pid, size in processes.items() if not most or size <= most},
            utilisation=None if share is None else share / 100,
            temperature_c=self.told(lambda: float(nvml.nvmlDeviceGetTemperature(handle, heat))),
            power_w=None if milliwatts is None else milliwatts / 1000,
            slowed_by=self.told(lambda: self._slowed(handle)) or (),
            at=time.time(),
        )

    def _memory(self, handle: Any) -> tuple[int, int] | None:
        """Return (total, used) without what the driver keeps; None where the RAM is the card's."""
        nvml = self._nvml
        if self._memory_v2:
            found = self.told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2))
            if found is not None:
                return int(found.total) - int(found.reserved), int(found.used)
        try:
            plain = nvml.nvmlDeviceGetMemoryInfo(handle)
        except self.error as error:
            if self._value(error) == nvml.NVML_ERROR_NOT_SUPPORTED:
                return None
            raise
        return int(plain.total), int(plain.used)

    def _processes(self, handle: Any) -> dict[int, int]:
        found: dict[int, int] = {}
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle):
            if process.usedGpuMemory is not None:
                pid = int(process.pid)
                found[pid] = found.get(pid, 0) + int(process.usedGpuMemory)
        return found

    def told(self, ask: Callable[[], T]) -> T | None:
        """Return an answer, or None: drivers do not tell everything of every card."""
        try:
            return ask()
        except self.error:
            return None


def visible_names(visible: str | None, count: int) -> list[str]:
    """Return the entries of CUDA_VISIBLE_DEVICES as CUDA reads them: those after a wrong one are
    hidden.

    Indices mean the order of the bus here and in workers, which get CUDA_DEVICE_ORDER for it.
    """
    if visible is None:
        return [str(index) for index in range(count)]
    names: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        is_index = entry.isdecimal() and int(entry) < count
        if not is_index and not entry.startswith(("GPU-", "MIG-")):
            break
        names.append(str(int(entry)) if is_index else entry)
    return names
