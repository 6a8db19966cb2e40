"""All open connections: caps in all and by address, and the times that each of them has.

Above a cap the oldest idle connection makes room; if all are at work, the new one is a guest, which
gets a 503, or an answer to /livez. A connection is idle until the headers of its first request are
complete, and between requests: who only connects, or sends headers bit by bit, keeps nobody out.

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
    """The protocol object that serves a connection."""

    def expire(self) -> None:
        """Do what is due now that the connection's deadline has passed."""


class Connection:
    """One connection, whatever is spoken on it, from its acceptance on."""

    __slots__ = (
        "address",
        "began",
        "deadline",
        "guest",
        "handler",
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
        self.shelf: dict[Connection, None] | None = None  #: where it waits while it is idle
        self.began = 0.0  #: when the headers of the present request were complete
        self.received = 0  #: bytes of the present request's body
        self.stalled_since: float | None = None  #: since when the client has left data unread
        self.taken = 0

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def unsent(self) -> int:
        """Count the bytes that wait for the client."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()


class _Address:
    """The connections that come from one place."""

    __slots__ = ("idle", "key", "open")

    def __init__(self, key: str) -> None:
        self.key = key
        self.open = 0
        self.idle: dict[Connection, None] = {}


class Connections:
    """The books of all connections, on one event loop."""

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
        guests: whoever may open it runs this server, and wants to know what is going on.
        """
        self._keep_ticking()
        connection, address = Connection(self.now + self.times.header), self._address(host)
        if address is not None and address.open >= self.capacity.per_address:
            self._make_room(address.idle)
        elif len(self._all) >= self.capacity.total:
            self._make_room(self._silent or self._resting)
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
        """Close some idle connections: the process is out of descriptors."""
        self.refused["descriptors"] += 1
        for _ in range(self.capacity.spare):
            if not self._make_room(self._silent or self._resting):
                return

    def busy(self, connection: Connection) -> None:
        """A request has begun: the connection is not idle any more."""
        if connection.shelf is not None:
            connection.shelf.pop(connection, None)
            connection.shelf = None
            if connection.address is not None:
                connection.address.idle.pop(connection, None)

    def rest(self, connection: Connection, seconds: float) -> None:
        """A request has ended; the connection may be idle for so many seconds."""
        connection.deadline = self.now + seconds
        if connection.shelf is None and connection in self._all:
            self._shelve(connection, self._resting)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed, or about to be; again is no harm."""
        if connection not in self._all:
            return
        self.busy(connection)
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

    def _make_room(self, idle: dict[Connection, None]) -> bool:
        """Close the oldest of these connections; False if there is none."""
        oldest = next(iter(idle), None)
        if oldest is None:
            return False
        self.refused["idle"] += 1
        self.remove(oldest)
        oldest.abort()
        return True

    def _shelve(self, connection: Connection, shelf: dict[Connection, None]) -> None:
        connection.shelf = shelf
        shelf[connection] = None
        if connection.address is not None:
            connection.address.idle[connection] = None

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
            self._forgive(paused)
        for connection in list(self._all):
            if connection.deadline <= now:
                self._expire(connection)
            if connection.unsent():
                self._check_taken(connection, now)
            else:
                connection.stalled_since = None

    def _forgive(self, seconds: float) -> None:
        """The process stood still, or its machine did: no client could do anything meanwhile."""
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
        elif now - connection.stalled_since > self.times.send:
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
    """Bytes that the client's machine has acknowledged; where the kernel does not tell, the fewer
    wait, the more."""
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
