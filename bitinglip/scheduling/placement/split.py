"""Splits a model that no device holds alone over several: evenly, or as far as they have room."""

from collections.abc import Collection, Mapping, Sequence

from bitinglip.scheduling.placement.estimate import Footprint

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


def weight_limits(reserved: Sequence[int], need: Footprint) -> tuple[int, ...]:
    """Return the bytes of weights that each of several devices may hold, in their order.

    What is reserved there without the share of the cache, which lies with its layers, and where the
    shares are uneven, so that a device may be filled, without what else it has to hold. The last
    has room for what whole layers leave of the others' shares.
    """
    roomy = [int(size * (1.0 - need.cache / max(1, need.total))) for size in reserved]
    if is_even(reserved):
        return tuple(roomy)
    weights = need.weights / max(1, need.total - need.overhead)
    strict = [max(1, int((size - need.overhead) * weights)) for size in reserved]
    return (*strict[:-1], roomy[-1])


def is_even(sizes: Collection[int]) -> bool:
    """Return True for shares that differ by rounding only."""
    return max(sizes) - min(sizes) < len(sizes)
