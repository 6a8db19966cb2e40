"""Checks the devices: cards, processor, and whether the installed torch goes with them.

torch itself is never imported: that takes seconds, and only workers do it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cli.checks.findings import Finding, Level
from cli.show.output import size

if TYPE_CHECKING:
    from bitinglip.settings import Settings
    from workers.devices import Device, Devices, Driver
    from workers.devices.torch_build import TorchBuild


def every_device(settings: "Settings") -> Iterator[Finding]:
    """Report the devices that the settings name, and whether torch goes with the driver."""
    from workers.devices import Devices
    from workers.devices.torch_build import torch_build

    fake = [(each.name, each.memory_bytes) for each in settings.devices.fake]
    own = settings.devices
    devices = Devices.find(fake, own.cpu_memory_bytes, own.memory_limit)
    try:
        devices.ask_torch()
        yield from findings(devices, settings, torch_build())
    finally:
        devices.close()


def findings(
    devices: "Devices", settings: "Settings", build: "TorchBuild | None", *, idle: bool = False
) -> Iterator[Finding]:
    """Report each device, a card that is missing, and the torch that is installed.

    ``idle``: a card that sleeps is not woken for it.
    """
    readings = devices.read(idle=idle)
    found = devices.list()
    cards = [device for device in found if device.kind == "cuda"]
    if devices.missing is not None:
        yield _missing(devices.missing, settings)
    elif devices.note is not None:
        yield _note(devices)
    for device in found:
        reading = readings.get(device.id)
        used = "does not answer" if reading is None else f"{size(reading.used_bytes)} in use"
        if device.kind == "cpu":
            yield _processor(device, used, settings, any(each.unified for each in found))
        else:
            yield _accelerator(device, used, settings)
    if (slow := devices.slow_start) is not None:
        what, _, advice = slow.partition(": ")
        yield Finding("gpu", "warning", what, advice)
    if (short := devices.pressure()) is not None:
        what, _, advice = short.rstrip(".").partition(": ")
        yield Finding("ram", "warning", what, advice)
    for name in devices.unknown_limits():
        detail = f"devices.memory_limit names {name!r}, and no such card is there"
        known = ", ".join(each.id for each in found if each.kind != "cpu")
        yield Finding("gpu", "warning", detail, f"name one of: {known}" if known else "take it out")
    yield _torch(devices.driver if cards else None, build)


def _accelerator(device: "Device", used: str, settings: "Settings") -> Finding:
    kept = f"{size(device.headroom(settings.devices.headroom_bytes))} kept free"
    detail = f"{device.id}: {device.name}, {size(device.memory_bytes)}, {kept}, {used}"
    if device.note:
        detail += f"; it {device.note}"
    state, reason = device.condition.state, device.condition.reason
    if reason is None:
        return Finding("gpu", "ok", detail)
    level: Level = "error" if state == "lost" else "warning"
    return Finding("gpu", level, f"{detail}; {state}: {reason}", "until then it takes no new load")


def _missing(reason: str, settings: "Settings") -> Finding:
    """Report a card that is there and no device."""
    detail = f"an NVIDIA card is not used: {reason}"
    if settings.devices.require == "cuda":
        return Finding("gpu", "error", detail, "until then no model is loaded (devices.require)")
    advice = "until then models run on the CPU; to do so on purpose, set CUDA_VISIBLE_DEVICES to -1"
    return Finding("gpu", "warning", detail, advice)


def _note(devices: "Devices") -> Finding:
    """Report why there are no cards; a machine without a driver needs none."""
    from workers.devices.cards import NO_DRIVER

    note, driver = devices.note or "", devices.driver
    if note == NO_DRIVER or any(device.kind == "fake" for device in devices.list()):
        return Finding("gpu", "ok", note)
    version = f"driver {driver.version}: " if driver else ""
    advice = "see what nvidia-smi says; in a container, pass --gpus all"
    return Finding("gpu", "warning", version + note, advice)


def _processor(device: "Device", used: str, settings: "Settings", unified: bool) -> Finding:
    from model_store.page_cache import budget

    chosen = settings.devices.page_cache_bytes
    cache = budget(0 if chosen is None and unified else chosen, device.physical_bytes)
    planned, there = size(device.memory_bytes), size(device.physical_bytes)
    detail = f"{device.name}, {planned} of {there} for models, {used}"
    if device.memory_bytes > device.physical_bytes:
        return Finding(
            "cpu", "warning", detail, "lower devices.cpu_memory_bytes, or set it to null"
        )
    return Finding("cpu", "ok", f"{detail}, {size(cache)} for the files of unloaded models")


def _torch(driver: "Driver | None", build: "TorchBuild | None") -> Finding:
    from workers.devices.torch_build import driver_unfit

    if build is None:
        return Finding("torch", "error", "not installed", "run: pip install torch")
    if driver is not None and (reason := driver_unfit(build, driver.version, driver.cuda)):
        what, _, advice = reason.rpartition(": install ")
        return Finding("torch", "error", what, f"install {advice}")
    made_for = f"CUDA {build.cuda}" if build.cuda else "processors"
    return Finding("torch", "ok", f"{build.version}, for {made_for}")
