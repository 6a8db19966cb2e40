"""Declares what a gateway and an agent say to each other beside the messages of workers.

One connection for the node: its devices and its heartbeats. One for each worker: its commands
and events as on pipes, its output, and the files of its jobs.
"""

import hashlib
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated

import msgspec

from workers.codes import LoadCode
from workers.devices.device import Device, DeviceUsage, Elsewhere
from workers.devices.xid import Report
from workers.framing import MAX_FRAME_BYTES
from workers.protocol import Command, ConfineMode, Event
from workers.protocol.bounds import Message, Name, Size

CHUNK_BYTES = 1 << 18  #: of a file, in one frame
MOST_WORKERS = 1024  #: of a gateway, on a node

OTHER_VERSION = "runs another version of BitingLip than the gateway: install the same"

Sizes = Annotated[dict[Name, Size], msgspec.Meta(max_length=256)]  #: bytes by device
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
#: names the store of models that a file comes from, and a set of files by their contents
Origin = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{0,32}$")]
TreeKey = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
MOST_TREES = 1024  #: of a node, that it tells a gateway of, and of a load


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sets up an agent. Comes as one line of JSON by its standard input: it holds the secret."""

    secret: str = ""  #: shared by gateway and agents
    secret_file: str | None = None  #: a file that holds the secret instead
    protocol: str = ""  #: what the gateway says to agents; Ray's actor looks whether it is the same
    host: str = "127.0.0.1"  #: the address to listen at, and no other
    ports: tuple[Port, Port] = (0, 0)  #: the first free one of these; 0: any
    node: str = ""  #: the machine, by a name that all gateways' agents on it are given
    folder: str  #: for workers' files; a folder of its own is made in it
    models: tuple[str, ...]  #: the folders and files that workers may load from
    hidden: tuple[str, ...] = ()  #: paths of secrets, that confined workers may not open
    confine: ConfineMode = "auto"
    perf_boost: bool = True
    spare: bool = True
    fake: tuple[tuple[str, int], ...] = ()  #: devices that are made up
    cpu_memory_bytes: int | None = None
    memory_limit: dict[str, int] = {}
    headroom_bytes: int = 0  #: of each card, that stay free; more of one with a screen:
    display_headroom_bytes: int = 0
    #: where models are copied to that gateways send; None: they are at the gateway's paths
    store: str | None = None
    store_max_bytes: int | None = None  #: of those; None: as the disk has room
    ends_with_input: bool = False  #: the end of its standard input ends it


class Listening(msgspec.Struct, frozen=True):
    """Tells where an agent listens: one line of JSON by its standard output."""

    host: str
    port: int


# ---- the first frame of a connection -------------------------------------------------------------


class Opening(msgspec.Struct, frozen=True):
    """Is what the first frame of any version has: what the others mean depends on it."""

    protocol: str = ""


class OpenNode(msgspec.Struct, tag="node", frozen=True, kw_only=True):
    """Asks for the node's facts and heartbeats."""

    protocol: str
    gateway: Name  #: by which it is told from others that use the node
    origin: Origin = ""  #: of the models that it copies
    beat_seconds: Annotated[float, msgspec.Meta(ge=0.01, le=60)] = 1.0


class OpenWorker(msgspec.Struct, tag="worker", frozen=True, kw_only=True):
    """Asks for a process that becomes a worker; its Load follows."""

    protocol: str
    gateway: Name
    node: str  #: what the gateway calls the machine
    name: Name
    engine: str
    visible_devices: str
    reserves: Sizes = {}
    ram: Size = 0  #: of its memory, beside those
    origin: Origin = ""  #: of the models that are copied for it
    token: Name = ""  #: by which connections that bring files name it


class OpenFiles(msgspec.Struct, tag="files", frozen=True, kw_only=True):
    """Brings files of models that a worker is to open; their Trees follow."""

    protocol: str
    token: Name  #: of the worker


Open = OpenNode | OpenWorker | OpenFiles


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Says why an agent does not do what a connection was opened for."""

    message: Message
    code: LoadCode = "MODEL_LOAD_FAILED"


# ---- about a node --------------------------------------------------------------------------------


class HeldTree(msgspec.Struct, frozen=True):
    """Names files on a node: where they were copied from, and what they are."""

    source: Path
    key: TreeKey


class StoreFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Tells of the models that were copied to a node: how much of its disk they take, which came
    from the store of the gateway that is told, and which have come whole, from any."""

    bytes: Size
    most: Size | None = None
    room: Size | None = None  #: for more, once all that is unused has left; None: it is not known
    held: Annotated[tuple[HeldTree, ...], msgspec.Meta(max_length=MOST_TREES)] = ()
    whole: Annotated[tuple[TreeKey, ...], msgspec.Meta(max_length=MOST_TREES)] = ()


class Drop(msgspec.Struct, frozen=True):
    """Says which files a gateway has no use for any more: its store has others, or none."""

    keys: Annotated[tuple[TreeKey, ...], msgspec.Meta(max_length=MOST_TREES)]


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Tells what devices a node has and their state, as its agent last read it."""

    devices: tuple[Device, ...]
    readings: Mapping[str, DeviceUsage]
    problems: Mapping[str, str] = {}
    pressure: str | None = None
    note: str | None = None
    reports: tuple[Report, ...] = ()  #: faults that cards have reported since the last look
    elsewhere: Mapping[str, Elsewhere] = {}  #: by device: what other gateways have of it
    store: StoreFacts | None = None  #: of models that were copied to it


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """Tells what a worker has of the node's memory, as its gateway counts it."""

    worker: Name
    devices: Sizes  #: reserved
    ram: Size = 0  #: reserved beside those
    held: Sizes = {}  #: as far as known
    idle: Annotated[float, msgspec.Meta(ge=0)] | None = None  #: seconds; None: it is to stay
    pinned: bool = False
    leaving: bool = False  #: it ends, and nothing waits here for what it has


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """Tells what a gateway holds on a node, and what it wishes other gateways to free there."""

    workers: Annotated[tuple[Holding, ...], msgspec.Meta(max_length=MOST_WORKERS)] = ()
    wishes: Sizes = {}
    others: Sizes = {}  #: what others had reserved of those devices as that was found missing


class Probe(msgspec.Struct, frozen=True):
    """Asks whether cards compute, by what CUDA_VISIBLE_DEVICES says."""

    ids: tuple[str, ...]


class Probed(msgspec.Struct, frozen=True):
    failed: dict[Name, Message]


# ---- about a worker ------------------------------------------------------------------------------


class Launched(msgspec.Struct, frozen=True):
    pid: int  #: on its node


class ProcessState(msgspec.Struct, frozen=True):
    """Tells what the gateway would read of a process of its own machine."""

    bytes_read: int | None
    stopped: bool


class File(msgspec.Struct, frozen=True):
    """Announces a file; its bytes follow."""

    name: str
    size: Annotated[int, msgspec.Meta(ge=0)]


class TreeFile(msgspec.Struct, frozen=True):
    """Describes a file of a folder by its path in there and by its content."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    size: Size
    sha256: Sha256


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """Lists the files of a folder, or the one file, that a load names."""

    source: Path  #: as the gateway has it
    is_file: bool = False
    files: Annotated[tuple[TreeFile, ...], msgspec.Meta(max_length=1 << 16)]


class Trees(msgspec.Struct, frozen=True):
    """Lists what a worker is to open; the node asks for what it lacks of it."""

    trees: Annotated[tuple[Tree, ...], msgspec.Meta(max_length=MOST_TREES)]
    lend: bool = False  #: jobs name them: they are put where the worker may read what comes later


class Need(msgspec.Struct, frozen=True):
    """Asks for the content of a file, from a byte on; pieces of it follow, up to its end."""

    sha256: Sha256
    offset: Size


class Stored(msgspec.Struct, frozen=True):
    """Tells how many bytes of those files the node has."""

    bytes: Size


class ProcessEnd(msgspec.Struct, frozen=True, kw_only=True):
    code: int | None
    short_of_ram: bool = False  #: the kernel has ended processes for want of RAM
    cause: Message | None = None  #: why the agent ended it


class Kind(IntEnum):
    """Names the frames of a connection, whichever side sends them."""

    OPEN = 1
    REFUSED = 2
    BEAT = 3
    FACTS = 4
    PROBE = 5
    PROBED = 6
    LAUNCHED = 7
    COMMANDS = 8
    EVENTS = 9
    OUTPUT = 10
    STATE = 11
    FILE = 12
    DATA = 13
    END = 14
    KILL = 15
    HOLDINGS = 16
    TREES = 17
    NEED = 18
    STORED = 19
    KEPT = 20  #: all files of the trees are there
    DROP = 21


#: What a gateway may send, and what an agent: a frame of another kind ends the connection.
FROM_GATEWAY = frozenset(
    {
        *(Kind.OPEN, Kind.PROBE, Kind.HOLDINGS),
        *(Kind.COMMANDS, Kind.FILE, Kind.DATA, Kind.KILL),
        *(Kind.TREES, Kind.DROP),
    }
)
FROM_AGENT = frozenset(Kind) - FROM_GATEWAY | {Kind.FILE, Kind.DATA}

#: bytes of a frame of each kind; one that claims more ends its connection
MOST_BYTES: Mapping[Kind, int] = dict.fromkeys(Kind, 1 << 20) | {
    Kind.COMMANDS: 1 << 28,
    Kind.EVENTS: MAX_FRAME_BYTES + 4,
    Kind.TREES: 1 << 25,
    Kind.BEAT: 0,
    Kind.KEPT: 0,
    Kind.KILL: 0,
}


def _digest() -> str:
    """Return a name of all messages as they are declared here: both sides must have the same."""
    schemas, components = msgspec.json.schema_components(
        [
            *(Command, Event, Open, Refused, NodeFacts, Holdings, Probe, Probed),
            *(Launched, ProcessState, File, ProcessEnd, Trees, Need, Stored, Drop),
        ],
        ref_template="{name}",
    )
    text = msgspec.json.encode([schemas, components], order="sorted")
    return hashlib.sha256(text).hexdigest()[:16]


PROTOCOL = _digest()
