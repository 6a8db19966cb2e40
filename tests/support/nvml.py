"""What pynvml would say on machines that we do not have: scripted answers and errors.

There is no driver where these tests run, so this one part is stood in for; tests/gpu asks the real
one.
"""
# ruff: noqa: N802 - the names are pynvml's

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


@dataclass
class StandInCard:
    """One card; an answer that is an exception is raised."""

    name: Any = "NVIDIA H100"
    uuid: str = "GPU-0"
    memory: Any = field(default_factory=lambda: SimpleNamespace(total=80, used=8))
    processes: Any = ()
    utilisation: Any = field(default_factory=lambda: SimpleNamespace(gpu=25))
    temperature: Any = 41
    milliwatts: Any = 120_500
    instances: "list[StandInCard | None] | None" = None  #: of one that is partitioned


class StandInNvml:
    """The functions of pynvml that the product calls."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *cards: StandInCard, init: int = 0, cuda: int = 13000) -> None:
        self.cards = cards
        self.init = init
        self.cuda = cuda
        self.opened = 0

    def nvmlInit(self) -> None:
        if self.init:
            raise NVMLError(self.init)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self.cuda

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> StandInCard:
        return self.cards[index]

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
        return card.uuid

    def nvmlDeviceGetName(self, card: StandInCard) -> Any:
        return self._answer(card.name)

    def nvmlDeviceGetMemoryInfo(self, card: StandInCard) -> Any:
        return self._answer(card.memory)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, card: StandInCard) -> Any:
        return self._answer(card.processes)

    def nvmlDeviceGetUtilizationRates(self, card: StandInCard) -> Any:
        return self._answer(card.utilisation)

    def nvmlDeviceGetTemperature(self, card: StandInCard, _sensor: int) -> Any:
        return self._answer(card.temperature)

    def nvmlDeviceGetPowerUsage(self, card: StandInCard) -> Any:
        return self._answer(card.milliwatts)

    def _answer(self, value: Any) -> Any:
        if not self.opened:
            raise NVMLError(1)  # uninitialised
        if isinstance(value, Exception):
            raise value
        return value

    def _missing(self) -> Any:
        raise NVMLError(self.NVML_ERROR_NOT_FOUND)
