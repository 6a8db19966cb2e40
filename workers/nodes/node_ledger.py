"""Keeps what is reserved on a node, by the agents of all gateways that have its folder in common.

Each agent writes a page of its own, whole or not at all, and reads those of the others. A page
counts for as long as its agent holds the lock of its folder, which the kernel takes from a process
that ends, however it ends. One agent grants at a time: it holds the ledger's lock while it reads
all pages, decides and writes. Nothing else needs that lock, so an agent that is killed at any point
leaves nothing behind that would have to be mended.
"""

import contextlib
import fcntl
import logging
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from workers.devices.device import Elsewhere
from workers.nodes.folder import AgentFolder, other_agents
from workers.nodes.reservations import (
    WISH_SECONDS,
    Entry,
    Page,
    Room,
    Viewer,
    Wish,
    elsewhere,
    refusal,
)

log = logging.getLogger(__name__)

_LOCK = "ledger.lock"
_PAGE = "ledger"
_MOST_BYTES = 1 << 22  #: of a page
_LOCK_SECONDS = 5.0  #: that a grant waits for others, which take milliseconds
_PAUSE = 0.005
_NEAR = 16 << 20  #: bytes by which what a process holds may differ from what its page says
_NEAR_SECONDS = 2.0

_BUSY = "another gateway's agent holds the ledger of the node"
_DAMAGED = "what another gateway's agent has reserved cannot be read; it writes that anew"


class Damaged(Exception):
    """The page of an agent that runs cannot be read."""


class NodeLedger:
    """Owns one agent's page. Its methods block for milliseconds; they may be called in threads."""

    def __init__(self, folder: AgentFolder, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises OSError. ``clock`` counts alike for all processes of the machine."""
        self._folder = folder
        self._clock = clock
        self._entries: dict[int, Entry] = {}  #: by the serial number of the worker
        self._wishes: dict[Viewer, Wish] = {}
        self._changing = threading.Lock()
        self._written = b""
        self._others: Sequence[Page] = ()  #: at the last look
        self._lock_path = folder.root.parent / _LOCK
        with self._changing:
            self._write()

    # ---- reservations ----------------------------------------------------------------------------

    def reserve(self, serial: int, wanted: Entry, rooms: Iterable[Room]) -> str | None:
        """Reserve memory for a worker; return why that cannot be. Raises OSError."""
        with self._granting() as mine, self._changing:
            if not mine:
                return _BUSY
            try:
                self._others = self._read_others()
            except Damaged:
                return _DAMAGED
            held = [each for page in self._others for each in page.entries]
            why = refusal(wanted, [*held, *self._entries.values()], rooms)
            if why is None:
                self._entries[serial] = wanted
                try:
                    self._write()
                except OSError:
                    del self._entries[serial]
                    raise
            return why

    def release(self, serial: int) -> None:
        """Give back a worker's memory; its process is gone."""
        with self._changing:
            if self._entries.pop(serial, None) is not None:
                self._try_to_write()

    def update(self, gateway: str, told: Mapping[str, Entry]) -> None:
        """Take over what a gateway says of its workers, by their names.

        More memory than was granted is what a process has taken already, and is no question.
        """
        with self._changing:
            newest = {e.worker: n for n, e in self._entries.items() if e.gateway == gateway}
            changed = False
            for worker, serial in newest.items():
                if (now := told.get(worker)) is None:
                    continue
                if not _is_near(self._entries[serial], now):
                    self._entries[serial], changed = now, True
            if changed:
                self._try_to_write()

    # ---- wishes ----------------------------------------------------------------------------------

    def wish(self, viewer: Viewer, devices: Mapping[str, int]) -> None:
        """Take over what a gateway wishes others to free, by keys of devices; nothing ends it."""
        with self._changing:
            now = self._clock()
            for each, old in list(self._wishes.items()):
                if each != viewer and now - old.at > WISH_SECONDS:
                    del self._wishes[each]  # of a gateway that has gone meanwhile
            if devices:
                self._wishes[viewer] = Wish(
                    gateway=viewer.gateway,
                    node=viewer.node,
                    devices=dict(devices),
                    at=now,
                )
            elif self._wishes.pop(viewer, None) is None:
                return
            self._try_to_write()

    # ---- looks -----------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the other agents' pages, and write one's own again where it was damaged.

        The last look at others stands while one of them cannot be read.
        """
        with self._changing:
            with contextlib.suppress(Damaged):
                self._others = self._read_others()
            if _read(self._page) != self._written:
                log.warning("the agent's page of the ledger is not what it should be: written anew")
                self._try_to_write()

    def elsewhere(self, viewer: Viewer, keys: Mapping[str, str]) -> dict[str, Elsewhere]:
        """Return what others than a gateway had of devices at the last look, by id."""
        with self._changing:
            pages = [*self._others, self._own]
            return elsewhere(pages, viewer, keys, self._clock())

    # ---- files -----------------------------------------------------------------------------------

    @property
    def _page(self) -> Path:
        return self._folder.root / _PAGE

    @property
    def _own(self) -> Page:
        return Page(list(self._entries.values()), list(self._wishes.values()))

    @contextlib.contextmanager
    def _granting(self) -> Iterator[bool]:
        """Hold the ledger's lock, and say whether it could be had; a process that stands still
        with it is not waited for. Raises OSError."""
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield self._locked(lock)
        finally:
            os.close(lock)

    @staticmethod
    def _locked(lock: int) -> bool:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    return False
                time.sleep(_PAUSE)
            else:
                return True

    def _read_others(self) -> list[Page]:
        """Read the pages of all other agents that run. Raises Damaged."""
        pages = []
        for folder in other_agents(self._folder):
            data = _read(folder / _PAGE)
            if data is None:  # it has just begun, or is of a version that keeps none
                continue
            pages.append(_decoded(data))
        return pages

    def _try_to_write(self) -> None:
        """Write the page; where that fails, the next look does."""
        try:
            self._write()
        except OSError as error:
            self._written = b""
            log.warning("the ledger of the node could not be written: %s", error.strerror)

    def _write(self) -> None:
        """Replace the page as a whole. Raises OSError."""
        body = msgspec.json.encode(self._own)
        data = b"%08x %s" % (zlib.crc32(body), body)
        part = self._page.with_suffix(".part")
        part.write_bytes(data)
        part.replace(self._page)
        self._written = data


def _read(path: Path) -> bytes | None:
    """Read a page; None if there is none, empty where it is no file of a page's size."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError:
        return b""
    return data if len(data) <= _MOST_BYTES else b""


def _decoded(data: bytes) -> Page:
    check, _, body = data.partition(b" ")
    if check != b"%08x" % zlib.crc32(body):
        raise Damaged
    try:
        return msgspec.json.decode(body, type=Page)
    except msgspec.DecodeError as error:
        raise Damaged from error


def _is_near(before: Entry, now: Entry) -> bool:
    """Return True if two say the same, but for what changes from second to second."""
    same = before.devices == now.devices and before.ram == now.ram
    if not same or before.pinned != now.pinned or before.held.keys() != now.held.keys():
        return False
    if (before.idle_since is None) != (now.idle_since is None):
        return False
    if abs((before.idle_since or 0.0) - (now.idle_since or 0.0)) > _NEAR_SECONDS:
        return False
    return all(abs(size - now.held[key]) <= _NEAR for key, size in before.held.items())
