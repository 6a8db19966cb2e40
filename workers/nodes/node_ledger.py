"""Keeps what is reserved on a node, by the agents of all gateways that have its folder in common.

Each agent writes a page of its own, whole or not at all, and reads those of the others. A page
counts for as long as its agent holds the lock of its folder, which the kernel takes from a process
that ends, however it ends.

An agent first writes what it is asked for, then reads the other pages, and takes it back if all of
it together is too much: of two that do so at once, at least one sees the other's. The ledger's lock
only spares them from refusing each other. So an agent that is killed at any point leaves nothing
behind that would have to be mended, and one that stands still with the lock keeps no other from
granting.
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
    FORMAT,
    LEAST,
    WISH_SECONDS,
    Entry,
    Heading,
    Page,
    Room,
    Viewer,
    Wish,
    elsewhere,
    refusal,
    to_leave,
)

log = logging.getLogger(__name__)

_LOCK = "ledger.lock"
_PAGE = "ledger"
_MOST_BYTES = 1 << 22  #: of a page
_LOCK_SECONDS = 2.0  #: that a grant waits for others, which take milliseconds
_PAUSE = 0.005
_MOST_HOLDER = 200  #: bytes of the text that says who has the lock
_NEAR = 16 << 20  #: bytes by which what a process holds may differ from what its page says
_NEAR_SECONDS = 2.0

_DAMAGED = "what another gateway's agent has reserved cannot be read; it writes that anew"


class Unreadable(Exception):
    """The page of an agent that runs cannot be read; the message says why."""


class NodeLedger:
    """Owns one agent's page. Its methods block for milliseconds; they may be called in threads."""

    def __init__(self, folder: AgentFolder, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises OSError. ``clock`` counts alike for all processes of the machine."""
        self._folder = folder
        self._clock = clock
        self._entries: dict[int, Entry] = {}  #: by the serial number of the worker
        self._wishes: dict[Viewer, Wish] = {}
        self._told_at: dict[str, float] = {}  #: by gateway: when it has said what its workers hold
        self._changing = threading.Lock()
        self._written = b""
        self._others: Sequence[Page] = ()  #: at the last look
        self._passed_over = b""  #: who stands still with the lock
        self._unreadable: str | None = None
        self._lock_path = folder.root.parent / _LOCK
        with self._changing:
            self._write()

    # ---- reservations ----------------------------------------------------------------------------

    def reserve(self, serial: int, wanted: Entry, rooms: Iterable[Room]) -> str | None:
        """Reserve memory for a worker; return why that cannot be. Raises OSError."""
        with self._turn(), self._changing:
            self._entries[serial] = msgspec.structs.replace(wanted, asked=True)
            try:
                self._write()
            except OSError:
                del self._entries[serial]
                raise
            try:
                self._others = self._read_others()
            except Unreadable as error:
                why: str | None = str(error)
            else:
                held = [each for page in self._others for each in page.entries]
                held += [each for number, each in self._entries.items() if number != serial]
                why = refusal(wanted, held, rooms)
            if why is None:
                self._entries[serial] = wanted
            else:
                del self._entries[serial]
            self._try_to_write()  # until it is, others count what was asked for
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
            self._told_at[gateway] = self._clock()
            newest = {e.worker: n for n, e in self._entries.items() if e.gateway == gateway}
            changed = False
            for worker, serial in newest.items():
                if (now := told.get(worker)) is None:
                    continue
                now = self._with_promise(now, self._entries[serial].leaving_since)
                if not _is_near(self._entries[serial], now):
                    self._entries[serial], changed = now, True
            if changed:
                self._try_to_write()

    # ---- wishes ----------------------------------------------------------------------------------

    def wish(self, viewer: Viewer, devices: Mapping[str, int], others: Mapping[str, int]) -> None:
        """Take over what a gateway wishes others to free, by keys of devices; nothing ends it.

        ``others``: what others had reserved of them as that was found missing.
        """
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
                    others=dict(others),
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
            try:
                self._others = self._read_others()
            except Unreadable as error:
                self._note_unreadable(str(error))
            else:
                self._unreadable = None
            stale = self._end_stale()
            if _read(self._page) != self._written:
                log.warning("the agent's page of the ledger is not what it should be: written anew")
                stale = True
            if stale:
                self._try_to_write()
            wished = self._to_leave()
        if wished:
            self._promise()

    def _promise(self) -> None:
        """Say of idle models that they leave for the wishes of others, before their gateways know
        it: so two agents do not each give the same bytes."""
        with self._turn(), self._changing, contextlib.suppress(Unreadable):
            self._others = self._read_others()
            now, leaving = self._clock(), self._to_leave()
            for serial in leaving:
                entry = self._entries[serial]
                self._entries[serial] = msgspec.structs.replace(entry, leaving_since=now)
            if leaving:
                self._try_to_write()

    def _to_leave(self) -> list[int]:
        """Return which of this agent's workers are to leave, by serial number."""
        chosen = set(map(id, to_leave([*self._others, self._own], self._clock())))
        return [serial for serial, each in self._entries.items() if id(each) in chosen]

    def _with_promise(self, told: Entry, since: float | None) -> Entry:
        """Return what a gateway says of a worker, with the promise that it has not heard of yet."""
        if told.leaving_since is not None:
            since = told.leaving_since if since is None else since
        elif told.idle_since is None or since is None or self._clock() - since > WISH_SECONDS:
            since = None
        return msgspec.structs.replace(told, leaving_since=since)

    def _end_stale(self) -> bool:
        """Take no model for idle whose gateway says nothing: it stands still, and evicts none.

        Returns True if the page has changed with that.
        """
        gateways = {each.gateway for each in self._entries.values()}
        now = self._clock()
        self._told_at = {each: self._told_at.get(each, now) for each in gateways}
        changed = False
        for serial, each in self._entries.items():
            silent = now - self._told_at[each.gateway] > WISH_SECONDS
            if silent and (each.idle_since, each.leaving_since) != (None, None):
                entry = msgspec.structs.replace(each, idle_since=None, leaving_since=None)
                self._entries[serial], changed = entry, True
        return changed

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
        return Page(
            format=FORMAT,
            least=LEAST,
            entries=list(self._entries.values()),
            wishes=list(self._wishes.values()),
        )

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Let agents grant one after the other; one that stands still with the lock is passed over.

        Raises OSError.
        """
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if self._locked(lock):
                self._passed_over = b""
                with contextlib.suppress(OSError):  # a full disk: nobody is named then
                    os.ftruncate(lock, 0)
                    os.pwrite(lock, f"process {os.getpid()}, {self._folder.root}".encode(), 0)
            yield
        finally:
            os.close(lock)

    def _locked(self, lock: int) -> bool:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, _MOST_HOLDER, 0) or b"unknown"
                if holder == self._passed_over:  # it has been waited for
                    return False
                if time.monotonic() > until:
                    self._passed_over = holder
                    told = holder.decode(errors="replace")
                    log.warning("an agent stands still with the lock of the ledger: %s", told)
                    return False
                time.sleep(_PAUSE)
            else:
                return True

    def _read_others(self) -> list[Page]:
        """Read the pages of all other agents that run. Raises Unreadable."""
        pages = []
        for folder in other_agents(self._folder):
            data = _read(folder / _PAGE)
            if data is None:  # it has just begun, or is of a version that keeps none
                continue
            pages.append(_decoded(data))
        return pages

    def _note_unreadable(self, why: str) -> None:
        """Log once why others' pages cannot be read."""
        if self._unreadable != why:
            log.warning("nothing is granted on this node: %s", why)
        self._unreadable = why

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
    """Return a page of any version that says enough for this one. Raises Unreadable."""
    check, _, body = data.partition(b" ")
    if check != b"%08x" % zlib.crc32(body):
        raise Unreadable(_DAMAGED)
    try:
        heading = msgspec.json.decode(body, type=Heading)
        if heading.least > FORMAT:
            raise Unreadable(_other_version(heading))
        return msgspec.json.decode(body, type=Page)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(_DAMAGED) from error


def _other_version(heading: Heading) -> str:
    return (
        "another gateway's agent there is of a later version of BitingLip, whose ledger (format "
        f"{heading.least}) this one's (format {FORMAT}) cannot read: restart this gateway with the "
        "version that is installed on the nodes"
    )


def _is_near(before: Entry, now: Entry) -> bool:
    """Return True if two say the same, but for what changes from second to second."""
    same = before.devices == now.devices and before.ram == now.ram
    if not same or before.pinned != now.pinned or before.held.keys() != now.held.keys():
        return False
    if (before.idle_since is None) != (now.idle_since is None):
        return False
    if before.leaving_since != now.leaving_since:
        return False
    if abs((before.idle_since or 0.0) - (now.idle_since or 0.0)) > _NEAR_SECONDS:
        return False
    return all(abs(size - now.held[key]) <= _NEAR for key, size in before.held.items())
