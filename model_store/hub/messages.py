"""Declares the messages between the server and the process that pulls for it: JSON, one a line.

An order goes in on stdin, and with it what must not be seen in arguments or environments; what
happens comes back on stdout, and ends with Pulled or Refused.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from model_store.errors import StoreCode
from model_store.manifest import Manifest

MOST_FILES = 1000  #: that are told one by one; the totals hold all
LINE_BYTES = 4 << 20  #: of a message, at most


Task = Literal["pull", "update", "repair"]  #: of a model that is new, of one that is there


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Says what to pull, into which store, and how the hub is asked."""

    root: str
    task: Task = "pull"
    repo: str
    name: str
    revision: str | None = None
    include: tuple[str, ...] = ()
    allow_pickles: bool = False
    bases: tuple[str, ...] | None = None  #: the models that an adapter may be for; None: all
    confine: str = "auto"
    endpoint: str | None = None
    mirrors: tuple[str, ...] = ()
    parallel: int = 4
    token: str | None = None
    bytes_per_second: int | None = None
    min_bytes_per_second: int = 1024
    environ: dict[str, str] = {}  #: such as HTTPS_PROXY, whose value may hold a password


class Limit(msgspec.Struct, frozen=True):
    """Tells the bandwidth from now on, which changes with the number of downloads that share it."""

    bytes_per_second: int


class Waits(msgspec.Struct, frozen=True, tag="waits"):
    """Another process pulls the same repository; its end is waited for."""


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """Tells what will come, in bytes by file, and what of it is there already."""

    bytes_total: int
    bytes_done: int = 0
    files: dict[str, int] = {}
    done: dict[str, int] = {}
    notes: tuple[str, ...] = ()  #: what a person should know, such as that a name has changed
    expected: Manifest | None = None  #: what decides the memory of the model


class Progressed(msgspec.Struct, frozen=True, tag="progressed"):
    """Tells the bytes that are there now: of all files, and of those that have grown."""

    bytes_done: int
    files: dict[str, int] = {}


class Pulled(msgspec.Struct, frozen=True, tag="pulled"):
    """The model is in the store."""

    name: str
    kind: str
    source: str
    revision: str | None
    total_bytes: int
    changes: dict[str, list[str]] = {}  #: files that an update or a repair has brought or removed


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The pull has failed; ``code`` is the contract's."""

    code: StoreCode
    message: str
    may_pass: bool = False  #: the hub did not answer, and may when it is asked again


Message = Waits | Planned | Progressed | Pulled | Refused
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message | Order | Limit) -> bytes:
    """Encode a message as one line."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """Decode a line of the puller's. Raises msgspec.MsgspecError."""
    return _decoder.decode(line)


def decode_order(line: bytes) -> Order:
    """Decode the server's line. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(line, type=Order)


def decode_limit(line: bytes) -> Limit:
    """Decode a later line of the server's. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(line, type=Limit)


def told(files: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the files to tell of: all, or the largest where there are too many."""
    listed = list(files)
    if len(listed) > MOST_FILES:
        listed = sorted(listed, key=lambda file: -file[1])[:MOST_FILES]
    return dict(listed)
