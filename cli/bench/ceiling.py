"""Finds how fast this machine could make tokens at most: each step reads all weights once."""

import time

_BYTES = 1 << 27  #: of a copy, more than caches hold
_ROUNDS = 4


def bytes_per_second(device: str) -> float | None:
    """Return the rate at which a device reads its memory; None if it cannot be told.

    A CPU's is measured by copies, a card's computed of its bus and clock as its driver says.
    """
    return _of_card() if device == "cuda" else _of_ram()


def _of_ram() -> float:
    import numpy as np

    source = np.ones(_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    best = 0.0
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        np.copyto(target, source)
        best = max(best, 2 * _BYTES / (time.perf_counter() - began))  # read and written
    return best


def _of_card() -> float | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        megahertz = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)
        bits = pynvml.nvmlDeviceGetMemoryBusWidth(handle)
    except pynvml.NVMLError:
        return None
    return float(2 * megahertz * 1e6 * bits / 8)  # at both edges of the clock
