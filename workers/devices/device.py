"""Describes a device, and its usage at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: well; doubtful: it worked and is in question, nothing new is planned there, resident workers go
#: on; lost: gone, or of no use to us.
State = Literal["well", "doubtful", "lost"]
_WORST = {"well": 0, "doubtful": 1, "lost": 2}


@dataclass(frozen=True, slots=True)
class Condition:
    """Describes the state of a device, and what an operator should know of it and do."""

    state: State = "well"
    reason: str | None = None  #: one or two sentences; None if it is well

    def worse(self, other: "Condition") -> "Condition":
        """Return the worse of the two; this one if they are equally bad."""
        return other if _WORST[other.state] > _WORST[self.state] else self


WELL = Condition()
CPU = "cpu"  #: the id of the processor
_ON = ":"  #: stands between the name of a node and an id there; in neither


def id_on(node: str, device: str) -> str:
    """Return the id that a device of a node has in its cluster, such as ``node2:0``."""
    return f"{node}{_ON}{device}"


def node_of(device: str) -> str:
    """Return the node of a device by its id; empty for one of this machine."""
    return device.rpartition(_ON)[0]


def id_there(device: str) -> str:
    """Return the id that a device has on its own machine."""
    return device.rpartition(_ON)[2]


def processor_of(device: str) -> str:
    """Return the id of the processor of the machine that a device is in."""
    node = node_of(device)
    return id_on(node, CPU) if node else CPU


def is_processor(device: str) -> bool:
    return id_there(device) == CPU


@dataclass(frozen=True, slots=True)
class Device:
    """Describes one card, the processor, or one that is made up."""

    id: str  #: a card's index, or its UUID; "cpu"; "fake0", "fake1", ...
    name: str
    kind: str  #: "cuda", "cpu" or "fake"
    memory_bytes: int  #: what may be planned with: a card's, or its limit; the processor's budget
    physical_bytes: int  #: what is there
    condition: Condition = WELL
    pin: str = ""  #: a card's full UUID: what CUDA_VISIBLE_DEVICES of a worker must say
    unified: bool = False  #: its memory is the processor's RAM
    exclusive: bool = False  #: it takes one worker at a time
    capability: tuple[int, int] | None = None  #: a card's compute capability, if it is told
    display: bool = False  #: a screen hangs on it
    kept_free: int = 0  #: bytes that stay free whatever is set
    note: str | None = None  #: what is special of it, and no fault
    node: str = ""  #: the machine of a cluster that it is in; empty: this one

    def headroom(self, set_bytes: int) -> int:
        """Return the bytes that stay free, of which a setting names the least."""
        return max(set_bytes, self.kept_free) if self.kind == "cuda" else 0


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """Holds one reading of a device; None is what it does not tell."""

    used_bytes: int  #: by all programs on the machine
    processes: Mapping[int, int]  #: pid -> bytes, as far as the driver tells
    utilisation: float | None = None  #: 0..1
    temperature_c: float | None = None
    power_w: float | None = None
    slowed_by: tuple[str, ...] = ()  #: "heat", "power supply", "power limit"
    at: float | None = field(default=None, compare=False)  #: when, by the clock on the wall


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Holds what other gateways have of a device of a node that they share, in bytes."""

    reserved: int = 0
    ram: int = 0  #: of a processor: all of its RAM, with that of models on cards
    held: int = 0  #: of those, what their processes are known to hold by now
    unknown: bool = False  #: a process of theirs is there, and nothing says yet what it holds
    idle: int = 0  #: of models that they may evict now, or that leave already
    pinned: int = 0  #: of models that they never evict
    leave: tuple[str, ...] = ()  #: this gateway's idle workers that it is to evict for them


NOTHING_ELSEWHERE = Elsewhere()
