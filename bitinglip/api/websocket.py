"""How uvicorn speaks WebSocket for us: small messages in, and nothing held for the deaf."""

from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

LINGER_SECONDS = 10.0  #: for a client to take what is written before the connection is cut


class WebSocketProtocol(WebSocketsSansIOProtocol):
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
