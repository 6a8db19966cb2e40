"""The cards, asked of the NVIDIA driver's library (NVML): without torch, never with a context."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from workers.devices.device import DeviceUsage

T = TypeVar("T")
NO_DRIVER = "no NVIDIA driver: models run on the CPU"


@dataclass(frozen=True, slots=True)
class Driver:
    version: str
    cuda: tuple[int, int]  #: the newest CUDA that it runs


@dataclass(frozen=True, slots=True)
class Card:
    """A card, or an instance of one that is partitioned (MIG)."""

    id: str
    name: str
    memory_bytes: int
    handle: Any


class Cards:
    """The cards that the driver shows and CUDA_VISIBLE_DEVICES leaves to us."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._open = False
        self.driver: Driver | None = None
        self.list: tuple[Card, ...] = ()
        self.note: str | None = None  #: what an operator should know

    @classmethod
    def find(cls, visible: str | None, nvml: Any = None) -> "Cards":
        """Asks the driver once. ``visible`` is CUDA_VISIBLE_DEVICES of this process, ``nvml`` what
        stands in for pynvml. Never raises: without a driver there are no cards, and a note.
        """
        if nvml is None:
            import pynvml

            nvml = pynvml
        cards = cls(nvml)
        try:
            nvml.nvmlInit()
            cards._open = True
            cards._find(visible)
        except nvml.NVMLError as error:
            cards.close()
            cards.driver, cards.list, cards.note = None, (), _no_driver(nvml, error)
        return cards

    def _find(self, visible: str | None) -> None:
        nvml = self._nvml
        number = nvml.nvmlSystemGetCudaDriverVersion()
        version = str(nvml.nvmlSystemGetDriverVersion())
        self.driver = Driver(version, (number // 1000, number % 1000 // 10))
        silent: list[str] = []
        found: list[Card] = []
        count = nvml.nvmlDeviceGetCount()
        for name in _names(visible, count):
            try:
                found += self._cards(name)
            except nvml.NVMLError as error:
                silent.append(f"{name} ({error})")
        self.list = tuple({card.id: card for card in found}.values())
        self.note = _note(count, visible, self.list, silent)

    def _cards(self, name: str) -> Iterator[Card]:
        """Return the cards that one entry of CUDA_VISIBLE_DEVICES names. Raises NVMLError."""
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
            except nvml.NVMLError:
                continue  # a place where no instance was made
            yield self._card(str(nvml.nvmlDeviceGetUUID(instance)), instance)

    def _by_uuid(self, start: str) -> tuple[Any, str]:
        """The card whose UUID begins so: CUDA takes beginnings, NVML does not. Raises NVMLError."""
        nvml = self._nvml
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if str(uuid := nvml.nvmlDeviceGetUUID(handle)).startswith(start):
                return handle, str(uuid)
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_FOUND)

    def _is_partitioned(self, handle: Any) -> bool:
        mode = self._told(lambda: self._nvml.nvmlDeviceGetMigMode(handle)[0])
        return bool(mode == self._nvml.NVML_DEVICE_MIG_ENABLE)

    def _card(self, name: str, handle: Any) -> Card:
        memory = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
        return Card(name, str(self._nvml.nvmlDeviceGetName(handle)), memory, handle)

    def read(self) -> dict[str, DeviceUsage]:
        """One look at each card that answers, by id."""
        looks = {card.id: self._read(card.handle) for card in self.list}
        return {name: reading for name, reading in looks.items() if reading is not None}

    def _read(self, handle: Any) -> DeviceUsage | None:
        """None where the card does not tell its memory: it fell off the bus, say."""
        nvml = self._nvml
        used = self._told(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used))
        if used is None:
            return None
        share = self._told(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu))
        heat = nvml.NVML_TEMPERATURE_GPU
        milliwatts = self._told(lambda: float(nvml.nvmlDeviceGetPowerUsage(handle)))
        return DeviceUsage(
            used_bytes=used,
            processes=self._told(lambda: self._processes(handle)) or {},
            utilisation=None if share is None else share / 100,
            temperature_c=self._told(lambda: float(nvml.nvmlDeviceGetTemperature(handle, heat))),
            power_w=None if milliwatts is None else milliwatts / 1000,
        )

    def _processes(self, handle: Any) -> dict[int, int]:
        found: dict[int, int] = {}
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle):
            if process.usedGpuMemory is not None:
                pid = int(process.pid)
                found[pid] = found.get(pid, 0) + int(process.usedGpuMemory)
        return found

    def _told(self, ask: Callable[[], T]) -> T | None:
        """An answer, or None: drivers do not tell everything of every card."""
        try:
            return ask()
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        if self._open:
            self._open = False
            self._told(self._nvml.nvmlShutdown)


def _names(visible: str | None, count: int) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES as CUDA reads them: those after a wrong one are hidden.

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


def _note(count: int, visible: str | None, cards: Sequence[Card], silent: list[str]) -> str | None:
    parts = []
    if silent:
        parts.append(f"these cards do not answer and are left out: {', '.join(silent)}")
    elif not count:
        parts.append("the NVIDIA driver shows no card")
    elif not cards and visible is not None:
        parts.append(f"CUDA_VISIBLE_DEVICES={visible!r} leaves no card to us")
    elif not cards:
        parts.append("the cards are partitioned (MIG), but have no instances")
    if not cards:
        parts.append("models run on the CPU")
    return ": ".join(parts) or None


def _no_driver(nvml: Any, error: Exception) -> str:
    absent = {nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED}
    if getattr(error, "value", None) in absent:
        return NO_DRIVER
    return f"the NVIDIA driver does not answer ({error}): models run on the CPU"
