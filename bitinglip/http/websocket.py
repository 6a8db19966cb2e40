"""How uvicorn speaks WebSocket for us: small messages in, and no wait for a client that is deaf."""

from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from bitinglip.http.connections import Connection, Connections

LINGER_SECONDS = 10.0  #: for a client to take what is written before the connection is cut


class WebSocketProtocol(WebSocketsSansIOProtocol):
    def take_over(self, connections: Connections, connection: Connection) -> None:
        """Serve a connection that began as HTTP, and stays in the same books."""
        self._books, self._connection = connections, connection
        connection.handler = self
        connection.deadline = float("inf")

    def connection_lost(self, exc: Exception | None) -> None:
        self._books.remove(self._connection)
        super().connection_lost(exc)

    def expire(self) -> None:
        """A WebSocket has no deadline: pings find out whether its client lives."""

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close":
            self.writable.set()  # the last frame queues behind what is unread, we do not
        await super().send(message)

    async def run_asgi(self) -> None:
        await super().run_asgi()
        # Closing waits until all is read, which a client may put off for ever.
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


#: what ``uvicorn.Config`` needs to know
OPTIONS: dict[str, Any] = {
    "ws": WebSocketProtocol,
    "ws_max_size": 4096,
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
    "ws_per_message_deflate": False,
}
