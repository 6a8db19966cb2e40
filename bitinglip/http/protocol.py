"""Bound uvicorn's HTTP/1.1: the size of headers, all times, and refusals in our own words."""

import asyncio
import math
import re
from typing import TYPE_CHECKING, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from bitinglip import errors
from bitinglip.api.cors import Cors
from bitinglip.api.request_context import has_caller
from bitinglip.http.connections import BODY_BYTES, Connection, Connections
from bitinglip.http.early_response import EarlyResponse
from bitinglip.http.exchange import EXTENSIONS, Exchange, split_target
from bitinglip.http.flow import Flow
from bitinglip.http.refusal import refusal_bytes

if TYPE_CHECKING:
    from bitinglip.http.websocket import WebSocketProtocol

MAX_HEADER_BYTES = 32_768  #: of a request's first line and headers together
MAX_HEADERS = 100
MAX_PIPELINED = 64  #: requests that a client may send ahead
_LARGE_DIGITS = len(
    "10000"
)  #: of a declared length; shorter bodies are read though they are not wanted
PIECE_BYTES = 4096  #: of headers and of chunked bodies, which the parser takes at once
_NOTED = frozenset({b"expect", b"content-length", b"transfer-encoding"})
_AUTHORITY = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)


class HttpProtocol(HttpToolsProtocol):
    """Serves one connection. A client's fault is answered once, and then nothing more is read."""

    def __init__(
        self,
        connections: Connections,
        connection: Connection,
        config: Config,
        server_state: ServerState,
        cors: Cors,
    ) -> None:
        super().__init__(config, server_state, {})
        self._cors = cors
        self._connections = connections
        self._times = connections.times
        self._connection = connection
        self._active: RequestResponseCycle | None = None  #: whose response was begun last
        self._in_head = True  #: the next bytes belong to a request's first line or headers
        self._head_bytes = 0
        self._begun = False  #: some bytes of the next request are here
        self._uncounted = False  #: they came together with the end of the request before
        self._receiving = False  #: the present request's body is not complete
        self._reread = False  #: the present request is read again, without its upgrade header
        self._chunked = False  #: its length is not declared
        self._pieces = 0  #: of content that the parser has found, in all
        self._bodiless = 0  #: bytes of a body's framing and trailers since its last content
        self._is_large = False  #: the present body is declared to be large
        self._early: EarlyResponse | None = None  #: to the present body's request
        self._waiting = b""  #: bytes that are read, and parsed when there is time
        self._refusal: tuple[errors.BitingLipError, str] | None = None
        self._refused = False

    # ---- the transport's side --------------------------------------------------------------------

    def connection_made(  # type: ignore[override]  # uvicorn narrows asyncio's BaseTransport
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        self.flow = self._flow = Flow(transport)
        self._connection.transport = transport
        self._connection.handler = self

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self._connection)
        super().connection_lost(exc)
        if self._active is not None:  # uvicorn tells the last request, which may be another
            self._active.disconnected = True
            self._active.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._waiting:
            self._waiting += data  # TLS may have more in hand when reading pauses
        elif not self._refused:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Give bytes to the parser, as far as this turn of the loop has time for them."""
        at, end = 0, len(data)
        while at < end and not (self._refused or self.transport.is_closing()):
            size = end - at
            if self._in_head:
                room = MAX_HEADER_BYTES - self._head_bytes
                if room <= 0:
                    self._refuse(errors.HeadersTooLarge(), "headers")
                    return
                if size > room or size > PIECE_BYTES:
                    size = min(room, PIECE_BYTES)
                self._head_bytes += size
            elif self._chunked:
                size = min(size, PIECE_BYTES)
            before = self._pieces
            if not self._feed(data if size == end else data[at : at + size]):
                return
            at += size
            if self._chunked and not self._connections.turns.spend(self._pieces - before + 1):
                self._wait(data[at:])
                break
        if self._receiving and self._early is None:
            self._expect_early_response()

    def _wait(self, data: bytes) -> None:
        """Parse these bytes in another turn, and read no more until then."""
        if data:
            self._waiting = data
            self._flow.hold()
            self._connections.turns.wait(self._go_on)

    def _go_on(self) -> None:
        data, self._waiting = self._waiting, b""
        self._parse(data)
        if not self._waiting:
            self._flow.release()

    def _feed(self, data: bytes) -> bool:
        """Give bytes to the parser; False if this protocol reads no more of the connection."""
        in_body, before = self._receiving, self._pieces  # a head is counted elsewhere
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._reread:
                return self._read_again(data[upgrade.args[0] :])
            self.handle_websocket_upgrade()
            return False
        except httptools.HttpParserError:
            error = errors.InvalidRequest("This is not a valid HTTP request.")
            self._refuse(*(self._refusal or (error, "invalid")))
            return False
        if in_body and self._receiving and self._pieces == before:
            self._bodiless += len(data)
            if self._bodiless > MAX_HEADER_BYTES:
                self._refuse(errors.HeadersTooLarge(), "headers")
                return False
        return True

    def _read_again(self, rest: bytes) -> bool:
        """Read a request that asks for an unknown protocol as if it did not; False as ``_feed``.

        The parser would leave out its body, and take that for the next request.
        """
        self._reread = False
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return self._feed(b"\r\n".join([*lines, b"", rest]))

    def expire(self) -> None:
        """Close, or say why: the time that this connection had is over."""
        connection = self._connection
        if self._refused and connection.unsent():  # while the client takes it; see the books
            connection.deadline = self._connections.now + self._times.linger
        elif self._refused or self.transport.is_closing():
            self.transport.abort()
        elif self._responding() and self._receiving:
            if self.flow.read_paused or self._waiting:
                connection.began += self._times.tick  # the server is slow, not the client
            due = connection.began + self._times.body + connection.received / BODY_BYTES
            if due > self._connections.now:
                connection.deadline = due
            else:
                self._refuse(errors.RequestTimeout(), "body_time")
        elif self._begun:
            self._refuse(errors.RequestTimeout(), "header_time")
        else:
            self.transport.close()

    def has_caller(self) -> bool | None:
        return None if self._active is None else has_caller(self._active.scope)

    def resume_writing(self) -> None:
        super().resume_writing()
        complete = self.cycle is not None and self.cycle.response_complete
        if complete and not self._receiving and not self._refused:
            self._rest()

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        protocol = cast("WebSocketProtocol", self.transport.get_protocol())
        protocol.take_over(self._connections, self._connection)

    # ---- the parser's side -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True
        self._chunked = self._is_large = False
        self._uncounted = self._head_bytes == 0
        # The first request's time runs since the connection was made.
        if self.cycle is not None and not self._responding():
            self._connection.deadline = self._connections.now + self._times.header

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer comes after all checks, so it must not be taken for a header
        name = name.lower()
        self.headers.append((name, value))
        if name in _NOTED:
            self._note(name, value)

    def _note(self, name: bytes, value: bytes) -> None:
        """Take note of a header that says how the body comes."""
        if name == b"expect":
            self.expect_100_continue |= value.lower() == b"100-continue"
        elif name == b"content-length":
            self._is_large = len(value) >= _LARGE_DIGITS
        else:
            self._chunked = True
            if value.lower() != b"chunked":
                error = errors.InvalidRequest("The only transfer coding that is known is chunked.")
                self._refusal = error, "invalid"

    def on_headers_complete(self) -> None:
        if self._refusal is None:
            self._refusal = self._objection()
        if self._refusal is not None:
            raise self._refusal[0]  # the parser stops; see ``_feed``
        if self.parser.should_upgrade() and not self._should_upgrade():
            self._reread = True  # once the parser has stopped
            return
        if self.url[:1] != b"/" and (authority := _AUTHORITY.match(self.url)):
            # It replaces what Host says.
            self.headers[:] = [each for each in self.headers if each[0] != b"host"]
            self.headers.append((b"host", authority[1]))
        self._in_head = self._begun = False
        self._receiving = True
        self._bodiless = 0
        connection = self._connection
        self._connections.busy(connection)
        if not self._responding():
            self._await_body()
        if self.expect_100_continue and self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # such a client knows nothing of it
        self._begin_exchange()

    def _begin_exchange(self) -> None:
        """Start the application, or queue the request behind the one that is responded to."""
        scope, parser = self.scope, self.parser
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if parser.should_upgrade() and self._should_upgrade():
            return
        scope["path"], scope["raw_path"], scope["query_string"] = split_target(self.url)
        scope["extensions"] = EXTENSIONS
        idle = not self._responding()
        keep_alive = version != "1.0" and parser.should_keep_alive()
        self.cycle = Exchange(scope, self, keep_alive=keep_alive)
        if idle:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _objection(self) -> tuple[errors.BitingLipError, str] | None:
        """Say what is wrong with a request whose headers are complete, and under which reason."""
        if self.parser.get_method() == b"CONNECT":
            return errors.InvalidRequest("This server is no proxy."), "invalid"
        if self._responding() and self.parser.should_upgrade() and self._should_upgrade():
            message = "A WebSocket cannot begin before earlier requests are answered."
            return errors.InvalidRequest(message), "invalid"
        if len(self.headers) > MAX_HEADERS:
            message = f"The request has more than {MAX_HEADERS} headers."
            return errors.HeadersTooLarge(message), "headers"
        if self._uncounted:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEADER_BYTES:
                return errors.HeadersTooLarge(), "headers"
        if len(self.pipeline) >= MAX_PIPELINED:
            return errors.InvalidRequest("Too many requests at once on a connection."), "pipelined"
        if self._connection.guest and self.url.partition(b"?")[0] != b"/livez":
            return errors.Unavailable("The server has too many connections."), "guests"
        return None

    def on_body(self, body: bytes) -> None:
        self._pieces += 1
        self._bodiless = 0
        self._connection.received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._reread:
            return
        self._in_head = True
        self._head_bytes = 0
        self._receiving = False
        if self._early is not None:
            self._early.end()
            self._early = None
        super().on_message_complete()
        if self.cycle is None or not self.cycle.response_complete:
            self._connection.deadline = math.inf
        else:
            self._rest()

    # ---- the application's side ------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Begin the next request that is here once a response is written, or wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._refused:
            return
        self.flow.resume_reading()
        connection = self._connection
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._connections.busy(connection)
            self._start_asgi_task(cycle, app)
            if self._receiving and not self.pipeline:
                self._await_body()
        elif self._receiving:  # a body that is not wanted any more
            connection.deadline = self._connections.now + self.timeout_keep_alive
        else:
            self._rest()

    def _expect_early_response(self) -> None:
        """Prepare for a response that begins before the body is here, and is not the last word.

        It ends the connection where the rest of the body is large, or of unknown length,
        or may never come because the client was not told to continue.
        """
        cycle = self.cycle
        if cycle is not None and not cycle.response_started:
            ends = self._chunked or self._is_large or cycle.waiting_for_100_continue
            self._early = EarlyResponse(cycle, self.hang_up, ends=ends)

    def shutdown(self) -> None:
        super().shutdown()
        if self._early is not None:
            self._early.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        cast("Exchange", cycle).start(app, self.loop, self.tasks)

    def _rest(self) -> None:
        """Be idle once the client has taken its response, but for what buffers hold."""
        if self.flow.write_paused:
            self._connections.unread(self._connection)
            self._connection.deadline = math.inf  # ``resume_writing`` comes, or too little is taken
        else:
            seconds = self._times.header if self._begun else self.timeout_keep_alive
            self._connections.rest(self._connection, seconds)

    def _await_body(self) -> None:
        connection = self._connection
        connection.received = 0
        connection.began = self._connections.now
        connection.deadline = connection.began + self._times.body

    def _responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: errors.BitingLipError, reason: str) -> None:
        """Answer with an error and read no more; where a response is under way, cut it off."""
        self._refused = True
        self._connections.refused[reason] += 1
        cycle = self.cycle if self._responding() else None
        if cycle is not None and (not self._receiving or cycle.response_started or self.pipeline):
            self.transport.abort()
            return
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        fields = dict(self.headers or ())  # as far as they are here
        headers = (*self.server_state.default_headers, *self._cors.headers(fields))
        self.transport.write(refusal_bytes(error, headers))
        self._linger()

    def hang_up(self) -> None:
        """Read no more of a client that sends on after its response, which it may still read."""
        self._refused = True
        self._connections.refused["unwanted"] += 1
        self._linger()

    def _linger(self) -> None:
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._connections.rest(self._connection, self._times.linger)
