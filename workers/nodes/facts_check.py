"""Checks what a node tells of its devices: the planner of all nodes reckons with it."""

import math
from collections.abc import Mapping

from workers.devices.device import CPU, Device, DeviceUsage, Elsewhere
from workers.framing import BadFrame
from workers.nodes.messages import MOST_WORKERS, NodeFacts

_MOST_BYTES = 1 << 50
_MOST_DEVICES = 256
_MOST_ID = 128
_MOST_TEXT = 4096  #: characters of a sentence for operators, and so many of them
_MOST_PROBLEMS = 512
_MOST_REASONS = 16  #: for which a card is slow
_LATEST = 1 << 33  #: seconds of the clock on the wall
_KINDS = ("cuda", "cpu", "fake")


def check_facts(facts: NodeFacts) -> None:
    """Raise BadFrame for devices and figures that no machine has."""
    ids = [each.id for each in facts.devices]
    if len(ids) > _MOST_DEVICES or len(set(ids)) < len(ids):
        raise BadFrame("it has too many devices, or two with one id")
    if not all(map(_is_device, facts.devices)):
        raise BadFrame("it has a device with an impossible id, kind or size")
    if any(each.unified for each in facts.devices) and CPU not in ids:
        raise BadFrame("a card shares the memory of a processor that is no device")
    texts = (facts.pressure, facts.note, *facts.problems, *facts.problems.values())
    if len(facts.problems) > _MOST_PROBLEMS or not all(map(_is_text, texts)):
        raise BadFrame("it tells too much of its problems")
    if not all(map(_is_usage, facts.readings.values())):
        raise BadFrame("it has read impossible figures of a device")
    if not all(map(_is_elsewhere, facts.elsewhere.values())):
        raise BadFrame("other gateways have impossible figures of a device")


def _is_device(device: Device) -> bool:
    name = device.id
    sizes = (device.memory_bytes, device.physical_bytes, device.kept_free)
    return (
        0 < len(name) <= _MOST_ID
        and name.isprintable()
        and ":" not in name
        and len(device.pin) <= _MOST_ID
        and len(device.name) <= _MOST_ID
        and device.name.isprintable()
        and device.pin.isprintable()
        and _is_text(device.note)
        and _is_text(device.condition.reason)
        and device.kind in _KINDS
        and (device.kind == "cpu") == (name == CPU)
        and all(map(_is_size, sizes))
    )


def _is_text(text: str | None) -> bool:
    return text is None or len(text) <= _MOST_TEXT


def _is_usage(usage: DeviceUsage) -> bool:
    figures = (usage.utilisation, usage.temperature_c, usage.power_w, usage.at)
    return (
        _is_size(usage.used_bytes)
        and len(usage.slowed_by) <= _MOST_REASONS
        and all(map(_is_text, usage.slowed_by))
        and _are_sizes(usage.processes)
        and all(each is None or math.isfinite(each) for each in figures)
        and (usage.at is None or 0 <= usage.at <= _LATEST)
    )


def _is_elsewhere(there: Elsewhere) -> bool:
    sizes = (there.reserved, there.ram, there.held, there.idle, there.pinned)
    return all(map(_is_size, sizes)) and len(there.leave) <= MOST_WORKERS


def _are_sizes(processes: Mapping[int, int]) -> bool:
    return all(map(_is_size, processes.values()))


def _is_size(size: int) -> bool:
    return 0 <= size <= _MOST_BYTES
