"""Runs uvicorn's server with our own acceptor and protocols."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from bitinglip.api import Application
from bitinglip.http import websocket
from bitinglip.http.acceptor import Acceptor, Factory, Tls
from bitinglip.http.connections import Connection, Connections
from bitinglip.http.protocol import HttpProtocol


class HttpServer(uvicorn.Server):
    """Serves an application on sockets that are bound already; ``connections`` are its books."""

    def __init__(
        self,
        app: Application,
        connections: Connections,
        *,
        tls: Tls | None = None,
        **options: Any,
    ) -> None:
        """``tls`` is asked at each connection, ``options`` are uvicorn's."""
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",  # see ``serve``
                http="httptools",
                interface="asgi3",  # it cannot tell from an application that is no coroutine itself
                **websocket.OPTIONS,
                proxy_headers=False,
                **options,
            )
        )
        self._app = app
        self._connections = connections
        self._tls = tls

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the application, serve, close it. What keeps it from opening is raised as it is."""
        with self.capture_signals():
            async with self._app.router.lifespan_context(self._app):
                await self._serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.servers = []
        for sock in sockets or ():
            self.listen(sock, self._protocol, self._tls)
        self.started = True

    def listen(self, sock: socket.socket, protocol: Factory, tls: Tls | None) -> None:
        """Serve this socket too, from now on; it is closed with the others."""
        acceptor = Acceptor(sock, self._connections, protocol, tls)
        self.servers.append(cast("asyncio.Server", acceptor))  # it does all that uvicorn asks

    def listen_locally(self, sock: socket.socket, wrap: Callable[[Any], ASGIApp]) -> None:
        """Serve a Unix socket, with an application that ``wrap`` makes of the usual one."""

        def protocol(connection: Connection) -> HttpProtocol:
            made = self._protocol(connection)
            made.app = cast("Any", wrap(made.app))
            return made

        self.listen(sock, protocol, None)

    def _protocol(self, connection: Connection) -> HttpProtocol:
        return HttpProtocol(
            self._connections, connection, self.config, self.server_state, self._app.door.cors
        )


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Drop what uvicorn takes for errors of the application: requests that a stop cut short."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
