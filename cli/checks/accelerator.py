"""Checks the devices: cards, processor, and whether the installed torch goes with them.

torch itself is never imported: that takes seconds, and only workers do it.
"""

import importlib.util
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cli.checks.findings import Finding
from cli.show.output import size

if TYPE_CHECKING:
    from bitinglip.settings import Settings
    from workers.devices import Device, Devices, Driver

_CUDA = re.compile(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", re.MULTILINE)


def every_device(settings: "Settings") -> Iterator[Finding]:
    """Report the devices that the settings name, and whether torch goes with the driver."""
    from workers.devices import Devices

    fake = [(each.name, each.memory_bytes) for each in settings.devices.fake]
    devices = Devices.find(fake, settings.devices.cpu_memory_bytes)
    try:
        yield from findings(devices, settings, _cuda_of_torch())
    finally:
        devices.close()


def findings(devices: "Devices", settings: "Settings", torch_cuda: str | None) -> Iterator[Finding]:
    found, readings = devices.list(), devices.read()
    cards = [device for device in found if device.kind == "cuda"]
    if devices.note is not None:
        yield _note(devices)
    for device in found:
        reading = readings.get(device.id)
        used = "does not answer" if reading is None else f"{size(reading.used_bytes)} in use"
        if device.kind == "cpu":
            yield _processor(device, used, settings)
        else:
            kept = f"{size(settings.devices.headroom_bytes)} kept free"
            detail = f"{device.id}: {device.name}, {size(device.memory_bytes)}, {kept}, {used}"
            yield Finding("gpu", "ok", detail)
    yield _torch(devices.driver if cards else None, torch_cuda)


def _note(devices: "Devices") -> Finding:
    """Report why there are no cards; a machine without a driver needs none."""
    from workers.devices.nvml import NO_DRIVER

    note, driver = devices.note or "", devices.driver
    if note == NO_DRIVER or any(device.kind == "fake" for device in devices.list()):
        return Finding("gpu", "ok", note)
    version = f"driver {driver.version}: " if driver else ""
    advice = "see what nvidia-smi says; in a container, pass --gpus all"
    return Finding("gpu", "warning", version + note, advice)


def _processor(device: "Device", used: str, settings: "Settings") -> Finding:
    from model_store.page_cache import budget

    cache = budget(settings.devices.page_cache_bytes, device.physical_bytes)
    planned, there = size(device.memory_bytes), size(device.physical_bytes)
    detail = f"{device.name}, {planned} of {there} for models, {used}"
    if device.memory_bytes > device.physical_bytes:
        return Finding(
            "cpu", "warning", detail, "lower devices.cpu_memory_bytes, or set it to null"
        )
    return Finding("cpu", "ok", f"{detail}, {size(cache)} for the files of unloaded models")


def _torch(driver: "Driver | None", cuda: str | None) -> Finding:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Finding("torch", "error", "not installed", "run: pip install torch")
    if driver is None:
        return Finding("torch", "ok", f"{version}, for {f'CUDA {cuda}' if cuda else 'processors'}")
    if cuda is None:
        return Finding(
            "torch",
            "error",
            f"{version} is built for processors and leaves the GPU unused",
            "install a CUDA build of it: https://pytorch.org/get-started/locally",
        )
    if int(cuda.partition(".")[0]) > driver.cuda[0]:
        newest = ".".join(map(str, driver.cuda))
        return Finding(
            "torch",
            "error",
            f"{version} needs CUDA {cuda}; driver {driver.version} runs {newest} at most",
            "update the NVIDIA driver, or install a torch for an older CUDA",
        )
    return Finding("torch", "ok", f"{version}, for CUDA {cuda}")


def _cuda_of_torch() -> str | None:
    """Return the CUDA version that torch was built for, from torch's version file."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return None
    return found[1] if (found := _CUDA.search(text)) else None
