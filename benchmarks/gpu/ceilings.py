"""Measures what the card can do at most: the first lines of the results."""

import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu.recorder import Recorder
from workers.devices import Devices
from workers.engines.defaults import CONTEXT_BYTES

_ROUNDS = 20
#: bytes copied, side of the matrices, bytes from the host
_SIZES = {"real": (4 << 30, 8192, 1 << 30), "tiny": (16 << 20, 256, 16 << 20)}


def measure(record: Recorder) -> None:
    """Name the machine, then measure the ceilings that later figures are related to."""
    devices = Devices.find()
    device = devices.list()[0]
    driver = devices.driver
    cuda = f"driver {driver.version}, CUDA {driver.cuda[0]}.{driver.cuda[1]}" if driver else "none"
    record.figure("device", device.name, note=f"{device.memory_bytes / 2**30:.1f} GiB")
    record.figure("driver", cuda)
    record.figure("torch", torch.__version__, note=f"Python {platform.python_version()}")
    record.figure("cuDNN", str(torch.backends.cudnn.version()), expected="91900")
    headers = Path(sys.base_prefix, "include", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    has_headers = (headers / "Python.h").exists()
    record.figure("C compiler", shutil.which("cc") or "none", note=f"Python.h: {has_headers}")
    if record.device == "cuda":
        _context(record, devices, device.id)
    copied, side, from_host = _SIZES[record.shape]
    _copy(record, copied)
    _product(record, side)
    _host_to_device(record, from_host)
    devices.close()


def _context(record: Recorder, devices: Devices, card: str) -> None:
    """Record the card's memory that a process takes before it has a tensor of any size."""
    before = devices.read()[card].used_bytes
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    reading = devices.read()[card]
    own = reading.used_bytes - before - torch.cuda.memory_reserved()
    note = f"the constant is {CONTEXT_BYTES / 2**20:.0f} MiB"
    record.figure("bare context", own / 2**20, "MiB", expected="450-550", note=note)
    record.figure("processes that NVML names", str(len(reading.processes)), expected="1 or 0")


def _copy(record: Recorder, size: int) -> None:
    source = torch.empty(size, dtype=torch.uint8, device=record.device)
    target = torch.empty_like(source)
    rate = 2 * size / _seconds(record, lambda: target.copy_(source))
    record.ceiling("copy", rate)
    record.figure(
        "copy on the device", rate / 1e12, "TB/s", expected="3.0 / 4.3", note="read+write"
    )


def _product(record: Recorder, side: int) -> None:
    left, right = (
        torch.randn(side, side, dtype=torch.bfloat16, device=record.device) for _ in range(2)
    )
    rate = 2 * side**3 / _seconds(record, lambda: left @ right)
    record.ceiling("bf16", rate)
    note = f"{side} x {side} x {side}, random"
    record.figure("bf16 product", rate / 1e12, "TFLOP/s", expected="790", note=note)


def _host_to_device(record: Recorder, size: int) -> None:
    if record.device == "cpu":
        record.figure("pinned host to device", "only on a card")
        return
    source = torch.empty(size, dtype=torch.uint8).pin_memory()
    target = torch.empty(size, dtype=torch.uint8, device="cuda")
    rate = size / _seconds(record, lambda: target.copy_(source, non_blocking=True))
    record.ceiling("host", rate)
    record.figure("pinned host to device", rate / 1e9, "GB/s", note="PCIe 5: 50-55")


def _seconds(record: Recorder, work: Callable[[], object]) -> float:
    """Return the time of one call, over many in a row after some that warm up."""
    for _ in range(3):
        work()
    record.synchronize()
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        work()
    record.synchronize()
    return (time.perf_counter() - began) / _ROUNDS
