"""Adds up what all gateways have reserved on the devices of a node, and decides on more. Pure.

Devices have keys here that hold for all agents of a machine: a card's UUID; else the node and the
device's id there.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from workers.devices.device import CPU, Device, Elsewhere
from workers.protocol.bounds import MOST_BYTES, Name, Size

#: Seconds for which what a gateway says holds: its wishes, and that its models may leave. It says
#: both again each second.
WISH_SECONDS = 5.0
LEAVING_SECONDS = 30.0  #: for which a model counts as leaving at most: an idle one ends at once

# Agents of several versions read each other's pages. Fields that a version does not know are
# ignored, and those that it misses have defaults: so a field may be added, with FORMAT raised by
# one. LEAST is raised to FORMAT where a reader that ignores the new field would grant too much.
FORMAT = 2
LEAST = 1


class Entry(msgspec.Struct, frozen=True, kw_only=True):
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
    leaving_since: float | None = None  #: ...; what it has will be free for others
    asked: bool = False  #: its agent reads what others have, before it grants this or takes it back

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


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for memory that other gateways' idle models hold."""

    gateway: Name
    node: Name
    devices: dict[Name, Size]
    at: float  #: of the machine's clock that counts from its start
    others: dict[Name, Size] = {}  #: what other gateways had reserved as this was found missing

    def left(self, key: str, reserved: int) -> int:
        """Return the bytes that are still to be freed, where others have so many reserved now."""
        return self.devices[key] - max(0, self.others.get(key, reserved) - reserved)


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """Says what of a page a reader must know; a page of any version can be read as one."""

    format: int = 1
    least: int = 1  #: the lowest format that a reader must know, to grant nothing beside it twice


class Page(Heading, frozen=True, kw_only=True):
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
    granted = [each for page in pages for each in page.entries if not each.asked]
    theirs = [each for each in granted if _of(each) != viewer]
    own = [each for each in granted if _of(each) == viewer and _leaves(each, now)]
    found = {}
    for name, key in keys.items():
        there = [each for each in theirs if each.on(key)]
        leave = tuple(each.worker for each in own if each.size(key))
        if not there and not leave:
            continue
        found[name] = Elsewhere(
            reserved=_total(each.size(key) for each in there),
            ram=_total(each.in_ram for each in there if each.host == key),
            held=_total(each.held.get(key, 0) for each in there),
            unknown=any(key not in each.held for each in there),
            idle=_total(
                each.size(key)
                for each in there
                if each.idle_since is not None or _leaves(each, now)
            ),
            pinned=_total(each.size(key) for each in there if each.pinned),
            leave=leave,
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


def to_leave(pages: Sequence[Page], now: float) -> list[Entry]:
    """Return the idle models that are to leave for wishes, beside those that do already.

    The models that have been idle for longest go, whosever they are. What is leaving, and what has
    been freed since the wish was made, counts first, for one wish each. A wish that idle models
    cannot fulfil frees nothing.
    """
    entries = [each for page in pages for each in page.entries if not each.asked]
    idle = sorted(
        (each for each in entries if each.idle_since is not None and not _leaves(each, now)),
        key=lambda each: (each.idle_since or 0.0, each.gateway, each.worker),
    )
    wishes = sorted(
        (each for page in pages for each in page.wishes if 0 <= now - each.at <= WISH_SECONDS),
        key=lambda each: (each.gateway, each.node),
    )
    promised: dict[int, int] = {}  #: to which wish, of what leaves
    chosen: dict[int, Entry] = {}
    for number, wish in enumerate(wishes):
        viewer = Viewer(wish.gateway, wish.node)
        for key in wish.devices:
            theirs = [each for each in entries if _of(each) != viewer and each.size(key)]
            left = wish.left(key, sum(each.size(key) for each in theirs))
            for each in theirs:
                leaves = id(each) in chosen or _leaves(each, now)
                if left > 0 and leaves and promised.setdefault(id(each), number) == number:
                    left -= each.size(key)
            able = [
                each
                for each in idle
                if id(each) not in chosen and each.size(key) and each.gateway != wish.gateway
            ]
            for each in _first(able, key, left):
                chosen[id(each)] = each
                promised[id(each)] = number
    return list(chosen.values())


def _leaves(entry: Entry, now: float) -> bool:
    """Return True for a model whose memory will be free in a moment."""
    since = entry.leaving_since
    return since is not None and 0 <= now - since <= LEAVING_SECONDS


def _first(able: Iterable[Entry], key: str, wanted: int) -> list[Entry]:
    """Return the first ones that have so much of a device together; none if all have too little."""
    going, freed = [], 0
    for each in able:
        if freed >= wanted:
            break
        going.append(each)
        freed += each.size(key)
    return going if freed >= wanted else []


def _of(entry: Entry) -> Viewer:
    return Viewer(entry.gateway, entry.node)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
