"""What this machine computes on, asked of the driver: never through torch, never with a context."""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Device:
    """One card, or the processor."""

    id: str  #: "cpu", or the card's index as CUDA_VISIBLE_DEVICES takes it
    name: str
    memory_bytes: int


@cache
def cuda_devices() -> tuple[Device, ...]:
    """The cards that the NVIDIA driver shows; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def _device(pynvml: object, index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)  # type: ignore[attr-defined]
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)  # type: ignore[attr-defined]
    name = pynvml.nvmlDeviceGetName(handle)  # type: ignore[attr-defined]
    return Device(str(index), str(name), int(memory.total))
