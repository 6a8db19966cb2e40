"""Configures uvicorn's WebSockets: nearly nothing in, no output kept for clients that stall."""

from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from bitinglip import errors
from bitinglip.api.request_context import has_caller
from bitinglip.http.connections import Connection, Connections
from bitinglip.http.refusal import refusal_bytes

MAX_FRAMES = 100  #: of any kind that a client may send in ``FRAMES_SECONDS``
FRAMES_SECONDS = 10.0
_POLICY_VIOLATION = 1008
_PIECE_BYTES = 1024  #: parsed at once: less than 200 frames, whatever is in them
LINGER_SECONDS = 10.0  #: seconds that a client has to read the rest before the connection is cut


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Serves uvicorn's protocol, but reads only control frames and closes connections that stall.

    No route reads messages, so none is kept. A client's frames cost the same whatever their size,
    and pings cause output, so a client that sends more than any needs is closed with 1008.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._requested = False  #: the request of the handshake is here, which comes first
        self._deaf = False  #: what the client sends is dropped unread
        self._frames = 0  #: since ``_since``
        self._since = 0.0

    def data_received(self, data: bytes) -> None:
        if not self._requested:
            self._requested = True
            super().data_received(data)
            return
        if not self.handshake_complete:  # no client may send anything before the answer
            self._deaf = True
            self.transport.abort()
        at = 0
        while at < len(data) and not self._deaf:
            super().data_received(data[at : at + _PIECE_BYTES])
            at += _PIECE_BYTES

    def handle_events(self) -> None:
        now = self.loop.time()
        if now - self._since > FRAMES_SECONDS:
            self._since, self._frames = now, 0
        self._frames += len(self.conn.events)
        if self._frames > MAX_FRAMES:
            self._deaf = True
            self._books.refused["frames"] += 1
            self.conn.events.clear()
            self.conn.writes.clear()  # pongs
            self.conn.fail(_POLICY_VIOLATION, "too many frames")
            self.handle_parser_exception()
            return
        super().handle_events()

    def handle_parser_exception(self) -> None:
        self._deaf = True
        super().handle_parser_exception()
        self._books.rest(self._connection, LINGER_SECONDS)

    def handle_text(self, event: Frame) -> None:
        """Drop a message: no route reads any."""

    handle_bytes = handle_cont = handle_text

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # no pong is owed to a client that leaves data unread

    def take_over(self, connections: Connections, connection: Connection) -> None:
        """Serve a connection that began as HTTP, and stays in the same books.

        Its request has been looked at. The library says nothing about one that it does not
        understand: one with a body, say.
        """
        self._books, self._connection = connections, connection
        connection.handler = self
        connection.deadline = connections.now + connections.times.body  # until it is answered
        if not self.handshake_initiated:
            self._deaf = self.handshake_complete = self.close_sent = True
            connections.refused["invalid"] += 1
            error = errors.InvalidRequest("This is not a valid WebSocket handshake.")
            self.transport.write(refusal_bytes(error, self.default_headers))
            if self.transport.can_write_eof():
                self.transport.write_eof()
            connections.rest(connection, connections.times.linger)

    def connection_lost(self, exc: Exception | None) -> None:
        self._books.remove(self._connection)
        super().connection_lost(exc)

    def expire(self) -> None:
        """Cut the connection, which is over; until then pings find out whether its client lives."""
        self.transport.abort()

    def has_caller(self) -> bool | None:
        return self.handshake_complete or has_caller(self.scope)

    async def send(self, message: ASGISendEvent) -> None:
        if self._deaf:
            raise ClientDisconnected
        if message["type"] == "websocket.close":
            self.writable.set()  # queue the close frame behind unread data without waiting
        await super().send(message)
        if message["type"] == "websocket.accept":
            self._connection.deadline = float("inf")
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # it was refused: uvicorn would log that as an error

    async def run_asgi(self) -> None:
        await super().run_asgi()
        # The transport closes once all data is read, which a client can delay for ever.
        self._books.rest(self._connection, LINGER_SECONDS)


#: arguments of ``uvicorn.Config``
OPTIONS: dict[str, Any] = {
    "ws": WebSocketProtocol,
    "ws_max_size": 4096,
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
    "ws_per_message_deflate": False,
}
