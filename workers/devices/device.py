"""A device, and its usage at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One card, the processor, or one that is made up."""

    id: str  #: what CUDA_VISIBLE_DEVICES of a worker must say; "cpu"; "fake0", "fake1", ...
    name: str
    kind: str  #: "cuda", "cpu" or "fake"
    memory_bytes: int  #: what may be planned with: all of a card's, the budget of the processor
    physical_bytes: int  #: what is there: RAM for the processor, else the same as memory_bytes


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """One look at a device; None is what it does not tell."""

    used_bytes: int  #: by everybody on the machine
    processes: Mapping[int, int]  #: pid -> bytes, as far as the driver tells
    utilisation: float | None = None  #: 0..1
    temperature_c: float | None = None
    power_w: float | None = None
