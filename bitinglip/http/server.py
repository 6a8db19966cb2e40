"""uvicorn's server with our own acceptor and protocols."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from bitinglip.http import websocket
from bitinglip.http.acceptor import Acceptor
from bitinglip.http.connections import Connection, Connections
from bitinglip.http.protocol import HttpProtocol


def config(app: ASGIApp, **options: Any) -> uvicorn.Config:
    """Return uvicorn's configuration; who runs the server opens and closes the application."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        lifespan="off",
        http="httptools",
        **websocket.OPTIONS,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        **options,
    )


class HttpServer(uvicorn.Server):
    """A server on sockets that are bound already; ``connections`` are its books."""

    def __init__(
        self, config: uvicorn.Config, connections: Connections, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # They do all that uvicorn asks of its servers.
        self.servers = [cast("asyncio.Server", self._acceptor(sock)) for sock in sockets or ()]
        self.started = True

    def serve_on(self, sock: socket.socket, wrap: Callable[[ASGIApp], ASGIApp]) -> None:
        """Listen on a further socket, without TLS; its requests go through ``wrap``."""

        def protocol(connection: Connection) -> HttpProtocol:
            made = self._protocol(connection)
            made.app = wrap(made.app)
            return made

        acceptor = Acceptor(sock, self._connections, protocol, None)
        self.servers.append(cast("asyncio.Server", acceptor))

    def _acceptor(self, sock: socket.socket) -> Acceptor:
        return Acceptor(sock, self._connections, self._protocol, self._tls)

    def _protocol(self, connection: Connection) -> HttpProtocol:
        return HttpProtocol(self._connections, connection, self.config, self.server_state)
