"""Splits a model that no device holds alone over several: evenly, or as far as they have room."""

from collections.abc import Collection, Mapping

_LEAST = 0.25  #: of an even share: a device with less room than that would hold hardly a layer


def shares(total: int, rooms: Mapping[str, int], parts: int) -> dict[str, int] | None:
    """Return the bytes that each of ``parts`` devices is to hold, the largest rooms first.

    rooms: the bytes that each device has room for. The shares are even but for devices that have
    less room than that: they are filled, and the others share the rest. None if it does not fit,
    or only with a device that has next to no room.
    """
    least = _LEAST * total / parts
    useful = [(device, room) for device, room in rooms.items() if room > 0 and room >= least]
    chosen = sorted(useful, key=lambda room: (-room[1], room[0]))[:parts]
    if len(chosen) < parts or sum(room for _, room in chosen) < total:
        return None
    found: dict[str, int] = {}
    left = total
    for number, (device, room) in enumerate(reversed(chosen)):
        found[device] = min(room, -(-left // (parts - number)))
        left -= found[device]
    return {device: found[device] for device, _ in chosen}


def is_even(sizes: Collection[int]) -> bool:
    """Return True for shares that differ by rounding only."""
    return max(sizes) - min(sizes) < len(sizes)
