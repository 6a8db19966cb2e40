"""Simulates pynvml for machines that we do not have: scripted answers and errors.

There is no driver where these tests run, so this one part is simulated; tests/gpu asks the real
one.
"""
# ruff: noqa: N802 - the names are pynvml's

import threading
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


@dataclass
class StandInCard:
    """Simulates one card; an answer that is an exception is raised."""

    name: Any = "NVIDIA H100"
    uuid: Any = "GPU-0"  #: an exception: no handle of it can be had
    memory: Any = field(default_factory=lambda: SimpleNamespace(total=80, used=8))
    processes: Any = ()
    utilisation: Any = field(default_factory=lambda: SimpleNamespace(gpu=25))
    temperature: Any = 41
    milliwatts: Any = 120_500
    memory_v2: Any = None  #: the newer call's answer; None: the driver does not know it
    capability: Any = (9, 0)
    compute_mode: int = 0
    display: Any = 0  #: 1: a screen hangs on it
    bus_id: str = "00000000:01:00.0"
    lanes: Any = (16, 16)  #: PCIe lanes that it uses, and that it has
    rows: Any = (0, 0, 0, 0)  #: of memory that were replaced, and whether some wait, or failed
    clocks: Any = 1  #: reasons for low clocks; 1: it has nothing to do
    events: Any = None  #: an exception: it reports nothing by itself
    instances: "list[StandInCard | None] | None" = None  #: of one that is partitioned


class StandInNvml:
    """Implements the functions of pynvml that the product calls."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_TIMEOUT = 10
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_COMPUTEMODE_PROHIBITED = 2
    NVML_COMPUTEMODE_EXCLUSIVE_PROCESS = 3
    nvmlEventTypeXidCriticalError = 8  # noqa: N815  pynvml's name
    nvmlMemory_v2 = 33554472  # noqa: N815  pynvml's name
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *cards: StandInCard, init: int = 0, cuda: int = 13000) -> None:
        """``init`` is the error of nvmlInit; 0 if it connects."""
        self.cards = cards
        self.version: str = "580.95"
        self.calls = 0  #: of looks at cards
        self.waits_for: threading.Event | None = None  #: each call hangs until it is set
        self.init = init
        self.cuda = cuda
        self.opened = 0
        self.reports: deque[tuple[StandInCard, int]] = deque()  #: cards and the Xids they report
        self.has_events = True

    def nvmlInit(self) -> None:
        self._hang()
        if self.init:
            raise NVMLError(self.init)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self.cuda

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.version

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> StandInCard:
        if not 0 <= index < len(self.cards):
            raise NVMLError(2)  # invalid argument
        card = self.cards[index]
        if isinstance(card.uuid, Exception):
            raise card.uuid
        return card

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> StandInCard:
        every = [*self.cards, *(one for card in self.cards for one in card.instances or () if one)]
        return next((card for card in every if card.uuid == uuid), None) or self._missing()

    def nvmlDeviceGetMigMode(self, card: StandInCard) -> list[int]:
        if card.uuid.startswith("MIG-"):
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return [int(card.instances is not None), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: StandInCard) -> int:
        return len(card.instances or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: StandInCard, index: int) -> StandInCard:
        return (card.instances or [])[index] or self._missing()

    def nvmlDeviceGetUUID(self, card: StandInCard) -> str:
        return str(card.uuid)

    def nvmlDeviceGetName(self, card: StandInCard) -> Any:
        return self._answer(card.name)

    def nvmlDeviceGetMemoryInfo(self, card: StandInCard, version: int | None = None) -> Any:
        if version is not None and card.memory_v2 is None:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return self._answer(card.memory if version is None else card.memory_v2)

    def nvmlDeviceGetCudaComputeCapability(self, card: StandInCard) -> Any:
        return self._answer(card.capability)

    def nvmlDeviceGetComputeMode(self, card: StandInCard) -> Any:
        return self._answer(card.compute_mode)

    def nvmlDeviceGetDisplayActive(self, card: StandInCard) -> Any:
        return self._answer(card.display)

    def nvmlDeviceGetPciInfo(self, card: StandInCard) -> Any:
        return SimpleNamespace(busId=self._answer(card.bus_id))

    def nvmlDeviceGetComputeRunningProcesses_v3(self, card: StandInCard) -> Any:
        return self._answer(card.processes)

    def nvmlDeviceGetUtilizationRates(self, card: StandInCard) -> Any:
        return self._answer(card.utilisation)

    def nvmlDeviceGetTemperature(self, card: StandInCard, _sensor: int) -> Any:
        return self._answer(card.temperature)

    def nvmlDeviceGetCurrPcieLinkWidth(self, card: StandInCard) -> Any:
        return self._answer(card.lanes)[0]

    def nvmlDeviceGetMaxPcieLinkWidth(self, card: StandInCard) -> Any:
        return self._answer(card.lanes)[1]

    def nvmlDeviceGetRemappedRows(self, card: StandInCard) -> Any:
        return self._answer(card.rows)

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: StandInCard) -> Any:
        return self._answer(card.clocks)

    def nvmlDeviceGetPowerUsage(self, card: StandInCard) -> Any:
        return self._answer(card.milliwatts)

    def nvmlEventSetCreate(self) -> "list[StandInCard]":
        if not self.has_events:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return []

    def nvmlDeviceRegisterEvents(self, card: StandInCard, kinds: int, of: Any) -> None:
        assert kinds == self.nvmlEventTypeXidCriticalError
        if card.events is not None:
            raise card.events
        of.append(card)

    def nvmlEventSetWait_v2(self, of: "list[StandInCard]", milliseconds: int) -> Any:
        """Return a report of a card that was registered; others are lost, as with the driver."""
        assert milliseconds < 100
        while self._answer(self.reports):
            card, number = self.reports.popleft()
            if card in of:
                kind = self.nvmlEventTypeXidCriticalError
                return SimpleNamespace(device=card, eventType=kind, eventData=number)
        raise NVMLError(self.NVML_ERROR_TIMEOUT)

    def nvmlEventSetFree(self, of: "list[StandInCard]") -> None:
        of.clear()

    def _hang(self) -> None:
        self.calls += 1
        if self.waits_for is not None:
            self.waits_for.wait()

    def _answer(self, value: Any) -> Any:
        self._hang()
        if not self.opened:
            raise NVMLError(1)  # uninitialised
        if isinstance(value, Exception):
            raise value
        return value

    def _missing(self) -> Any:
        raise NVMLError(self.NVML_ERROR_NOT_FOUND)
