"""Says which nodes have a model's files, or room on their disks for copies of them. Pure."""

from collections.abc import Mapping, Sequence

from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger
from bitinglip.scheduling.placement.plan import Demand
from bitinglip.scheduling.placement.split import shares


def lack(demand: Demand, device: DeviceCapacity) -> int:
    """Return 0 where a device's node has the files, 1 where it could copy them, 2 where it tells
    that they have no room."""
    if demand.files in device.files:
        return 0
    return 2 if device.copy_room is not None and device.copy_room < demand.file_bytes else 1


def differ(demand: Demand, devices: Sequence[DeviceCapacity]) -> bool:
    """Return True if it matters for the files on which of these devices a model is loaded."""
    return len({lack(demand, each) for each in devices if each.kind in demand.needs}) > 1


def without_full(demand: Demand, ledger: Ledger) -> list[DeviceCapacity]:
    """List the devices that a demand may go to: those whose disks have lately had no room for it
    only if no other could take it, whoever has to leave there."""
    devices = [each for each in ledger.devices if each.kind in demand.needs]
    others = [each for each in devices if demand.model not in each.full_for]
    return others if len(others) < len(devices) and _could_take(demand, others, ledger) else devices


def _could_take(demand: Demand, devices: Sequence[DeviceCapacity], ledger: Ledger) -> bool:
    """Return True if one of these devices, or several of a machine, would have the memory without
    the models that may be evicted, and others' idle ones."""
    rooms: dict[tuple[str, str], dict[str, int]] = {}  # by kind and machine
    for each in devices:
        if each.reason is None:
            room = ledger.obtainable(each) + each.elsewhere.idle
            rooms.setdefault((each.kind, each.node), {})[each.id] = room
    return any(
        _fits(demand, kind, room) and _has_ram(demand, ledger.ram_obtainable(node))
        for (kind, node), room in rooms.items()
    )


def _fits(demand: Demand, kind: str, room: Mapping[str, int]) -> bool:
    return any(
        shares(demand.needs[kind] + (parts - 1) * demand.each_device, room, parts)
        for parts in range(1, min(demand.spread, len(room)) + 1)
    )


def _has_ram(demand: Demand, ram: int | None) -> bool:
    return ram is None or demand.ram <= ram
