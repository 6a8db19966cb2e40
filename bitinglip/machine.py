"""Finds out at the start what the machine has: devices, and RAM for files of models."""

from pathlib import Path

import structlog

from bitinglip.settings import Devices as DeviceSettings
from model_store.file_systems import slow_storage
from model_store.page_cache import PageCache, budget
from workers.devices import Devices
from workers.devices.host import Host

log = structlog.get_logger(__name__)


def find_devices(settings: DeviceSettings) -> Devices:
    """Find the machine's devices, or make those that the settings make up; say what is odd."""
    devices = Devices.find(
        [(each.name, each.memory_bytes) for each in settings.fake],
        settings.cpu_memory_bytes,
        settings.memory_limit,
    )
    if devices.slow_start:
        log.warning(devices.slow_start)
    for name in devices.unknown_limits():
        log.warning("devices.memory_limit names a card that is not there", card=name)
    if devices.note and not devices.missing:  # which is told as a problem
        log.info(devices.note)
    return devices


def open_page_cache(
    settings: DeviceSettings, devices: Devices, models: Path, *, elsewhere: bool = False
) -> PageCache:
    """Make what keeps models' files in RAM, within the settings' budget.

    ``elsewhere``: models are loaded by other machines, to which this one's RAM is of no use.
    """
    if elsewhere:
        return PageCache(0, reads_first=False)
    cache_bytes = settings.page_cache_bytes
    if cache_bytes is None and any(device.unified for device in devices.list()):
        cache_bytes = 0  # files in RAM would take a card's memory
    slow = slow_storage(models)
    if slow is not None:
        log.warning("models load slowly from where they lie", models=str(models), storage=slow)
    size = budget(cache_bytes, Host().total_bytes)
    return PageCache(size, reads_first=slow is not None)
