"""Accepts connections, as many as there is room for, and outlives a lack of descriptors."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable

import structlog

from bitinglip.http.connections import Connection, Connections

log = structlog.get_logger(__name__)

_BATCH = 64  #: connections that one turn of the loop accepts, so that others get their turn
_PAUSE_SECONDS = 0.1  #: without accepting, when there are no descriptors
_SAY_SECONDS = 60.0  #: between two log lines about that
_SHUTDOWN_SECONDS = 5.0  #: in which a client of TLS says goodbye
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: makes the protocol object of a connection
Factory = Callable[[Connection], asyncio.BaseProtocol]
Tls = Callable[[], ssl.SSLContext]  #: with the certificate that is in use now


class Acceptor:
    """Serves one listening socket, like asyncio's own server, from its making until ``close``.

    The event loop's own server would make a connection before anyone can refuse it, would not know
    of those that never finish their TLS handshake, and may end when accepting fails.
    """

    def __init__(
        self,
        listener: socket.socket,
        connections: Connections,
        factory: Factory,
        tls: Tls | None,
    ) -> None:
        self.sockets = (listener,)
        self._listener = listener
        self._connections = connections
        self._factory = factory
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._said_at = -_SAY_SECONDS
        listener.setblocking(False)
        listener.listen(connections.capacity.backlog)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._listener)
        for task in self._opening:
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                sock, address = self._listener.accept()
            except OSError as error:  # none is waiting, or one that has left already
                if error.errno in _EXHAUSTED:
                    self._pause()
                return
            host = address[0] if isinstance(address, tuple) else None
            connection = self._connections.admit(host)
            if connection is None:
                sock.close()
                continue
            self._open(connection, sock)

    def _open(self, connection: Connection, sock: socket.socket) -> None:
        """Give the connection its transport and its protocol, after the TLS handshake if any."""

        def opened(task: asyncio.Task[None]) -> None:
            self._opening.discard(task)
            connection.opening = None
            if task.cancelled() or task.exception() is not None:
                self._connections.remove(connection)
                sock.close()  # a task that is cancelled at once never began

        connection.opening = self._loop.create_task(self._connect(connection, sock))
        self._opening.add(connection.opening)
        connection.opening.add_done_callback(opened)

    async def _connect(self, connection: Connection, sock: socket.socket) -> None:
        context, timeouts = None, {}
        if self._tls is not None:
            context = self._tls()
            timeouts = {
                "ssl_handshake_timeout": self._connections.times.header,
                "ssl_shutdown_timeout": _SHUTDOWN_SECONDS,
            }
        sock.setblocking(False)
        await self._loop.connect_accepted_socket(
            lambda: self._factory(connection), sock, ssl=context, **timeouts
        )

    def _pause(self) -> None:
        """Stop accepting for a moment: the kernel would report the same socket again at once."""
        now = self._loop.time()
        if now - self._said_at > _SAY_SECONDS:
            self._said_at = now
            log.warning("no descriptors are left; idle connections are closed")
        self._connections.make_room()
        self._loop.remove_reader(self._listener)
        self._paused = self._loop.call_later(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._listener, self._accept)
