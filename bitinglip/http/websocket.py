"""Configures uvicorn's WebSockets: small messages in, no output kept for clients that stall."""

from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from bitinglip.http.connections import Connection, Connections

LINGER_SECONDS = 10.0  #: seconds that a client has to read the rest before the connection is cut


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which closes connections of clients that have stopped reading."""

    def take_over(self, connections: Connections, connection: Connection) -> None:
        """Serve a connection that began as HTTP, and stays in the same books."""
        self._books, self._connection = connections, connection
        connection.handler = self
        connection.deadline = float("inf")

    def connection_lost(self, exc: Exception | None) -> None:
        self._books.remove(self._connection)
        super().connection_lost(exc)

    def expire(self) -> None:
        """Do nothing: a WebSocket has no deadline, pings find out whether its client lives."""

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close":
            self.writable.set()  # queue the close frame behind unread data without waiting
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # it was refused: uvicorn would log that as an error

    async def run_asgi(self) -> None:
        await super().run_asgi()
        # The transport closes once all data is read, which a client can delay for ever.
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


#: arguments of ``uvicorn.Config``
OPTIONS: dict[str, Any] = {
    "ws": WebSocketProtocol,
    "ws_max_size": 4096,
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
    "ws_per_message_deflate": False,
}
