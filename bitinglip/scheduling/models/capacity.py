"""Shows a device as the planner sees it: what of it may be planned with."""

from dataclasses import replace

from bitinglip.scheduling.models.shared_nodes import SharedNodes
from bitinglip.scheduling.models.use import MemoryUse
from bitinglip.scheduling.placement.ledger import DeviceCapacity
from bitinglip.settings import Devices as DeviceSettings
from workers.devices import Device
from workers.devices.device import processor_of


def capacity(
    device: Device, use: MemoryUse, settings: DeviceSettings, shared: SharedNodes
) -> DeviceCapacity:
    """Return the device with the memory that others use and that stays free."""
    elsewhere = shared.elsewhere(device.id)
    if not shared.gives():
        elsewhere = replace(elsewhere, leave=())
    return DeviceCapacity(
        id=device.id,
        kind=device.kind,
        memory=device.memory_bytes,
        physical=device.physical_bytes,
        other_bytes=use.other_bytes(device.id),
        headroom=_headroom(device, settings),
        name=device.name,
        reason=device.condition.reason,
        doubtful=device.condition.state == "doubtful",
        short_since=use.short_since(device.id),
        exclusive=device.exclusive,
        display=device.display,
        shares=processor_of(device.id) if device.unified else None,
        node=device.node,
        elsewhere=elsewhere,
        refused_until=shared.refused_until(device.id),
        files=shared.files(device.id),
        copy_room=shared.copy_room(device.id),
        full_for=shared.full_for(device.id),
    )


def _headroom(device: Device, settings: DeviceSettings) -> int:
    """Return the bytes of a device that stay free: more where a screen hangs on it."""
    screen = settings.display_headroom_bytes if device.display else 0
    return max(device.headroom(settings.headroom_bytes), screen)
