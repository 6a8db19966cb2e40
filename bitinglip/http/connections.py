"""Counts all open connections: caps in all and by address, and the times that each of them has.

Above a cap the oldest idle connection makes room, or else the one that has been at work longest
without a caller who is known by a key; if all work for such callers, the new one is a guest, which
gets a 503, or an answer to /livez. A connection is idle until the headers of its first request are
complete, and between requests. So no client is kept out by clients that only connect, send headers
bit by bit, or read public pages slowly.

One timer looks after all of them once a second, so a request sets no timer of its own.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, Protocol

from bitinglip.http.capacity import Capacity
from bitinglip.http.turns import Turns

SEND_BYTES = 65_536  #: a client that leaves data unread takes so much in ``Times.send`` at least
BODY_BYTES = 65_536  #: received, they give a body another second
_UNKNOWN_SHARE = 0.25  #: of ``Times.send``, for clients without a known caller
_PAUSE_SECONDS = 3.0  #: a tick that comes later than by this does not count against clients
_BYTES_ACKED = slice(120, 128)  #: ``tcpi_bytes_acked`` of Linux's struct tcp_info


@dataclass(frozen=True, slots=True)
class Times:
    """Holds the time limits of connections, in seconds."""

    header: float = 10.0  #: from the connection, or a request's first byte, to its last header
    guest: float = 2.0  #: the same for a connection beyond the caps
    body: float = 60.0  #: for a body, which is given more as it comes in
    send: float = 60.0  #: for a client that leaves data unread
    linger: float = 2.0  #: after a refusal, so that a client that still sends can read it
    tick: float = 1.0  #: between two looks at all connections


class Handler(Protocol):
    """Serves a connection: the protocol object."""

    def expire(self) -> None:
        """Do what is due now that the connection's deadline has passed."""

    def has_caller(self) -> bool | None:
        """Return whether the present request's caller is known; None if it was not
        looked up yet."""


class Connection:
    """Tracks one connection, whatever is spoken on it, from its acceptance on."""

    __slots__ = (
        "address",
        "answered",
        "began",
        "deadline",
        "guest",
        "handler",
        "local",
        "opening",
        "received",
        "shelf",
        "stalled_since",
        "taken",
        "transport",
    )

    def __init__(self, deadline: float) -> None:
        self.handler: Handler | None = None  #: None, like ``transport``, until TLS is agreed on
        self.transport: asyncio.Transport | None = None
        self.opening: asyncio.Task[Any] | None = None  #: brings it there
        self.deadline = deadline  #: in the loop's time; infinity while a request is at work
        self.address: _Address | None = None
        self.guest = False  #: beyond the caps
        self.answered = False  #: at work only because its client has not taken the answer yet
        self.local = False  #: over the home's Unix socket
        self.shelf: dict[Connection, None] | None = None  #: from where it may make room, if any
        self.began = 0.0  #: when the headers of the present request were complete
        self.received = 0  #: bytes of the present request's body
        self.stalled_since: float | None = None  #: since when the client has left data unread
        self.taken = 0

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def has_caller(self) -> bool | None:
        """See ``Handler``."""
        return None if self.handler is None else self.handler.has_caller()

    def unsent(self) -> int:
        """Count the bytes that wait for the client."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()


class _Address:
    """Counts the connections that come from one address."""

    __slots__ = ("idle", "key", "open", "working")

    def __init__(self, key: str) -> None:
        self.key = key
        self.open = 0
        self.idle: dict[Connection, None] = {}
        self.working: dict[Connection, None] = {}  #: see ``Connections``


class Connections:
    """Tracks all connections, on one event loop."""

    def __init__(self, capacity: Capacity, times: Times | None = None) -> None:
        self.capacity = capacity
        self.times = times or Times()
        self.turns = Turns()
        self._all: set[Connection] = set()
        self._guests = 0
        self._addresses: dict[str, _Address] = {}
        # The oldest first. Who never completed a request goes before who rests between two.
        self._silent: dict[Connection, None] = {}
        self._resting: dict[Connection, None] = {}
        #: at work, but for those whose callers were found to be known when room was needed
        self._working: dict[Connection, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.now = 0.0  #: the loop's time at the last tick
        self.refused: Counter[str] = (
            Counter()
        )  #: connections that were closed on purpose, by reason

    @property
    def open(self) -> int:
        return len(self._all)

    def all(self) -> Collection[Connection]:
        return self._all

    def states(self) -> Mapping[str, int]:
        """Count the open connections by state."""
        idle = len(self._silent) + len(self._resting)
        return {"busy": len(self._all) - idle, "idle": idle}

    def admit(self, host: str | None) -> Connection | None:
        """Take in a new connection from ``host``, which is None for a Unix socket.

        Returns None if it is too many even for a guest: close it then. The Unix socket's are no
        guests: those who may open it run this server.
        """
        self._keep_ticking()
        connection, address = Connection(self.now + self.times.header), self._address(host)
        connection.local = host is None
        if address is not None and address.open >= self.capacity.per_address:
            self._make_room(address)
        elif len(self._all) >= self.capacity.total:
            self._make_room()
        if host is not None and self._is_full(address):  # all others are at work
            self.refused["connections"] += 1
            if self._guests >= self.capacity.spare:
                return None
            self._guests += 1
            connection.guest = True
            connection.deadline = self.now + self.times.guest
        self._all.add(connection)
        connection.address = address
        if address is not None:
            address.open += 1
        self._shelve(connection, self._silent)
        return connection

    def make_room(self) -> None:
        """Close some connections: the process is out of descriptors."""
        self.refused["descriptors"] += 1
        for _ in range(self.capacity.spare):
            if not self._make_room():
                return

    def busy(self, connection: Connection) -> None:
        """Note that a request has begun: the connection is not idle any more."""
        connection.answered = False
        if connection.local:
            self._unshelve(connection)
        elif connection.shelf is not self._working:
            self._shelve(connection, self._working)

    def unread(self, connection: Connection) -> None:
        """Note that a request has ended, but much of its answer waits for the client."""
        self.busy(connection)
        connection.answered = True

    def rest(self, connection: Connection, seconds: float) -> None:
        """Note that a request has ended; the connection may be idle for so many seconds."""
        connection.deadline = self.now + seconds
        shelf = connection.shelf
        if connection in self._all and (shelf is None or shelf is self._working):
            self._shelve(connection, self._resting)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed, or about to be; may be called twice."""
        if connection not in self._all:
            return
        self._unshelve(connection)
        self._all.discard(connection)
        self._guests -= connection.guest
        address = connection.address
        if address is not None:
            address.open -= 1
            if not address.open:
                del self._addresses[address.key]

    def _is_full(self, address: "_Address | None") -> bool:
        if address is not None and address.open >= self.capacity.per_address:
            return True
        return len(self._all) >= self.capacity.total

    def _make_room(self, address: "_Address | None" = None) -> bool:
        """Close the connection, of this address if any, that is missed least.

        False if all of them are at work for known callers.
        """
        idle = address.idle if address is not None else self._silent or self._resting
        found, reason = next(iter(idle), None), "idle"
        if found is None:
            working = address.working if address is not None else self._working
            found, reason = self._unknown(working), "no_caller"
        if found is None:
            return False
        self.refused[reason] += 1
        self.remove(found)
        found.abort()
        return True

    def _unknown(self, working: "dict[Connection, None]") -> Connection | None:
        """Return the connection that has been at work longest without a known caller.

        Those that are found to have one are not looked at again before their next request.
        """
        found, known = None, []
        for connection in working:
            has_caller = connection.has_caller()
            if connection.answered or has_caller is False:
                found = connection
                break
            if has_caller:
                known.append(connection)
        for connection in known:
            self._unshelve(connection)
        return found

    def _shelve(self, connection: Connection, shelf: dict[Connection, None]) -> None:
        if connection.shelf is not None:
            self._unshelve(connection)
        connection.shelf = shelf
        shelf[connection] = None
        address = connection.address
        if address is not None:
            (address.working if shelf is self._working else address.idle)[connection] = None

    def _unshelve(self, connection: Connection) -> None:
        if connection.shelf is None:
            return
        connection.shelf.pop(connection, None)
        connection.shelf = None
        address = connection.address
        if address is not None:
            address.idle.pop(connection, None)
            address.working.pop(connection, None)

    def _address(self, host: str | None) -> _Address | None:
        key = address_key(host)
        if key is None:
            return None
        return self._addresses.get(key) or self._addresses.setdefault(key, _Address(key))

    # ---- once a second ---------------------------------------------------------------------------

    def _keep_ticking(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self.now = loop.time()
            self._timer = loop.call_later(self.times.tick, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._all:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.times.tick, self._ring)
            self.tick(loop.time())

    def tick(self, now: float) -> None:
        """Handle the connections whose time is up, and those whose clients read nothing."""
        paused = now - self.now - self.times.tick
        self.now = now
        if paused > _PAUSE_SECONDS:
            self._extend_deadlines(paused)
        for connection in list(self._all):
            if connection.deadline <= now:
                self._expire(connection)
            if connection.unsent():
                self._check_taken(connection, now)
            else:
                connection.stalled_since = None

    def _extend_deadlines(self, seconds: float) -> None:
        """Give clients the time back in which this process, or its machine, stood still."""
        for connection in self._all:
            connection.deadline += seconds
            connection.began += seconds
            if connection.stalled_since is not None:
                connection.stalled_since += seconds

    def _expire(self, connection: Connection) -> None:
        if connection.handler is not None:
            connection.handler.expire()
        else:
            self.refused["tls"] += 1
            connection.abort()

    def _check_taken(self, connection: Connection, now: float) -> None:
        taken = _taken(connection)
        if connection.stalled_since is None or taken - connection.taken >= SEND_BYTES:
            connection.stalled_since, connection.taken = now, taken
            return
        share = _UNKNOWN_SHARE if connection.has_caller() is False else 1.0
        if now - connection.stalled_since > self.times.send * share:
            self.refused["unread"] += 1
            connection.abort()


def address_key(host: str | None) -> str | None:
    """Name the place that a host is counted under: an IPv4 address, or an IPv6 network of 64 bits.

    None for this machine, where any number of clients may share an address.
    """
    if host is None:
        return None
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        else:
            return None if address.is_loopback else str(int(address) >> 64)
    return None if address.is_loopback else str(address)


def _taken(connection: Connection) -> int:
    """Return the bytes that the client's machine has acknowledged, or a number that
    grows with them.

    Where the kernel does not tell, it is the bytes that wait here, below zero.
    """
    assert connection.transport is not None
    try:
        info = connection.transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop
        )
    except (AttributeError, OSError, ValueError):
        info = b""
    if len(info) < _BYTES_ACKED.stop:  # a Unix socket, or another kernel
        return -connection.unsent()
    return int.from_bytes(info[_BYTES_ACKED], "little")
