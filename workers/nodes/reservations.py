"""Adds up what all gateways have reserved on the devices of a node, and decides on more. Pure.

Devices have keys here that hold for all agents of a machine: a card's UUID; else the node and the
device's id there.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from workers.devices.device import CPU, Device, Elsewhere
from workers.protocol.bounds import MOST_BYTES, Name, Size

WISH_SECONDS = 5.0  #: that a wish holds; a gateway says it again each second


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names a worker, and the memory that is reserved for it on a node, by keys of devices."""

    gateway: Name
    node: Name
    worker: Name
    devices: dict[Name, Size]
    host: Name  #: the key of the processor
    ram: Size = 0  #: beside its devices
    held: dict[Name, Size] = {}  #: what its process has by now, as far as that is known
    idle_since: float | None = None  #: of the clock below; None: it may not be evicted
    pinned: bool = False

    def size(self, key: str) -> int:
        """Return the bytes that it takes of a device: what is reserved, or more if it has more."""
        return max(self.devices[key], self.held.get(key, 0)) if key in self.devices else 0

    @property
    def in_ram(self) -> int:
        """Return the RAM that it takes, that on the processor included."""
        return max(self.ram + self.devices.get(self.host, 0), self.held.get(self.host, 0))

    def on(self, key: str) -> int:
        """Return the bytes that it takes of what there is of a device: of a processor, of RAM."""
        return self.in_ram if key == self.host else self.size(key)


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for memory that other gateways' idle models hold."""

    gateway: Name
    node: Name
    devices: dict[Name, Size]
    at: float  #: of the machine's clock that counts from its start


class Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Holds what one agent says in the ledger: it alone writes it."""

    entries: list[Entry] = []
    wishes: list[Wish] = []


class Room(NamedTuple):
    """Tells what there is of a device of this node."""

    device: Device
    key: str
    used: int  #: by all programs, as it was read just now
    headroom: int  #: bytes that stay free


class Viewer(NamedTuple):
    """Names who looks at the ledger: a gateway, at one of its nodes."""

    gateway: str
    node: str


def key_of(node: str, device: Device) -> str:
    """Return a device's key: of a card, the same for every agent that sees it."""
    return device.pin or f"{node}/{device.id}"


def keyed(devices: Mapping[str, int], node: str, there: Sequence[Device]) -> dict[str, int]:
    """Return sizes by keys; a card that shares the processor's memory takes of both.

    Raises KeyError for a device that is not there.
    """
    known = {each.id: each for each in there}
    taken = {key_of(node, known[name]): size for name, size in devices.items()}
    if any(known[name].unified for name in devices) and CPU in known:
        size = _total(devices.values())
        shared = [each for each in there if each.unified or each.id == CPU]
        taken |= {key_of(node, each): size for each in shared}
    return taken


def refusal(wanted: Entry, entries: Iterable[Entry], rooms: Iterable[Room]) -> str | None:
    """Say why a reservation cannot be granted beside those that there are; None if it can."""
    held = list(entries)
    for room in rooms:
        limits = [(wanted.devices.get(room.key, 0), *_planned(room, held))]
        if room.key == wanted.host:
            limits.append((wanted.in_ram, *_in_ram(room, held)))
        for needed, free, taken in limits:
            if needed > max(0, free):
                return (
                    f"{room.device.id} has {_gb(max(0, free))} left and {_gb(needed)} are needed: "
                    f"{_gb(taken)} are reserved there by all gateways."
                )
    return None


def elsewhere(
    pages: Sequence[Page], viewer: Viewer, keys: Mapping[str, str], now: float
) -> dict[str, Elsewhere]:
    """Return what others than the viewer have of devices, by id, whose keys are given."""
    theirs = [each for page in pages for each in page.entries if _of(each) != viewer]
    given = _given(pages, viewer, now)
    found = {}
    for name, key in keys.items():
        there = [each for each in theirs if each.on(key)]
        wished = given.get(key, 0)
        if not there and not wished:
            continue
        found[name] = Elsewhere(
            reserved=_total(each.size(key) for each in there),
            ram=_total(each.in_ram for each in there if each.host == key),
            held=_total(each.held.get(key, 0) for each in there),
            unknown=any(key not in each.held for each in there),
            idle=_total(each.size(key) for each in there if each.idle_since is not None),
            pinned=_total(each.size(key) for each in there if each.pinned),
            wished=min(wished, MOST_BYTES),
        )
    return found


def _total(sizes: Iterable[int]) -> int:
    """Add bytes up, to no more than a message may say: gateways may tell what they like."""
    return min(sum(sizes), MOST_BYTES)


def _planned(room: Room, entries: Sequence[Entry]) -> tuple[int, int]:
    """Return what is left of a device's budget, and what is reserved of it."""
    device = room.device
    taken = sum(each.size(room.key) for each in entries)
    physical = (device.physical_bytes or device.memory_bytes) - room.headroom
    free = min(device.memory_bytes, physical - _others(room, entries)) - taken
    alone = device.exclusive and any(room.key in each.devices for each in entries)
    return (0 if alone else free), taken


def _in_ram(room: Room, entries: Sequence[Entry]) -> tuple[int, int]:
    """Return what is left of a processor's RAM, and what is reserved of it."""
    taken = sum(each.in_ram for each in entries if each.host == room.key)
    whole = room.device.physical_bytes or room.device.memory_bytes
    return whole - _others(room, entries) - taken, taken


def _others(room: Room, entries: Sequence[Entry]) -> int:
    """Return what programs use that are no gateway's.

    A process that has not told what it holds counts as holding what is reserved for it.
    """
    ours = sum(each.held.get(room.key, each.on(room.key)) for each in entries)
    return max(0, room.used - ours)


def _given(pages: Sequence[Page], viewer: Viewer, now: float) -> dict[str, int]:
    """Return the bytes by device that the viewer is to free for others' wishes.

    The models that have been idle for longest go, whosever they are; every agent that reads the
    same pages finds the same ones. A wish that idle models cannot fulfil frees nothing.
    """
    entries = [each for page in pages for each in page.entries]
    idle = sorted(
        (each for each in entries if each.idle_since is not None),
        key=lambda each: (each.idle_since or 0.0, each.gateway, each.worker),
    )
    wishes = sorted(
        (each for page in pages for each in page.wishes if 0 <= now - each.at <= WISH_SECONDS),
        key=lambda each: (each.gateway, each.node),
    )
    chosen: set[int] = set()
    given: dict[str, int] = {}
    for wish in wishes:
        for key, wanted in wish.devices.items():
            able = {
                number: each.size(key)
                for number, each in enumerate(idle)
                if number not in chosen and each.size(key) and each.gateway != wish.gateway
            }
            going = _first(able, wanted)
            chosen.update(going)
            for number in going:
                if _of(idle[number]) == viewer:
                    given[key] = given.get(key, 0) + idle[number].size(key)
    return given


def _first(able: Mapping[int, int], wanted: int) -> list[int]:
    """Return the first ones that are enough together, by their bytes; none if all are too few."""
    going, freed = [], 0
    for number, size in able.items():
        if freed >= wanted:
            break
        going.append(number)
        freed += size
    return going if freed >= wanted else []


def _of(entry: Entry) -> Viewer:
    return Viewer(entry.gateway, entry.node)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
