"""Handles one request and its response on a connection, as uvicorn does, with a quicker way to
write."""

import asyncio
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from bitinglip.api.request_context import WHOLE_BODY

Header = tuple[bytes, bytes]
#: what may stand in a header; without these, nothing but our own line ends is left of a head
_TEXT = bytes(byte for byte in range(256) if byte == 9 or (byte >= 32 and byte != 127))
_WITHOUT_BODY = (204, 304)
_LONGEST_KEPT = 128  #: bytes of a target whose parts are kept


#: of the ASGI scope: the message that begins a response may hold all of its body
EXTENSIONS: dict[str, dict[Any, Any]] = {WHOLE_BODY: {}}


class Exchange(RequestResponseCycle):
    """Writes a response of declared length in one piece: one call, one record of TLS."""

    _task: "asyncio.Task[None]"

    def __init__(self, scope: Any, protocol: HttpToolsProtocol, *, keep_alive: bool) -> None:
        """Set up as uvicorn does, from the protocol that has read a request's head."""
        self.scope = scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.default_headers = protocol.server_state.default_headers
        self.message_event = asyncio.Event()
        self.on_response = protocol.on_response_complete
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = self.response_complete = False
        self.chunked_encoding: bool | None = None
        self.expected_content_length = 0
        self._head = b""  #: waits for the first part of the body
        self._until_close = False  #: the end of the connection is that of the body

    def start(
        self,
        app: ASGI3Application,
        loop: asyncio.AbstractEventLoop,
        tasks: "set[asyncio.Task[None]]",
    ) -> None:
        """Run the application in a task, which is one of ``tasks`` as long as it lasts."""
        self._task = task = loop.create_task(self._run(app, tasks))
        tasks.add(task)

    async def _run(self, app: ASGI3Application, tasks: "set[asyncio.Task[None]]") -> None:
        # A callback of the task in place of ``finally`` costs another turn of the loop.
        try:
            await app(self.scope, self.receive, self.send)
            if not (self.response_complete or self.disconnected):
                await self.run_asgi(_return)
        except BaseException as error:  # noqa: BLE001  uvicorn's way with errors, too
            await self.run_asgi(partial(_raise, error))
        finally:
            self.on_response = _nothing
            tasks.discard(self._task)

    async def receive(self) -> Any:
        """Return the next part of the body, or that the client has gone, once there is one."""
        if self.waiting_for_100_continue or not self.message_event.is_set():
            return await super().receive()
        self.flow.resume_reading()
        self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        """Take one of the application's messages. Raises RuntimeError if it is out of order."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        expected = "http.response.body" if self.response_started else "http.response.start"
        if message["type"] != expected or self.response_complete:
            raise RuntimeError(f"{message['type']} in place of {expected}")
        if self.response_started:
            self._write(message.get("body", b""), last=not message.get("more_body", False))
            return
        self.response_started = True
        self.waiting_for_100_continue = False
        headers = [*self.default_headers, *message.get("headers", ())]
        if (body := message.get(WHOLE_BODY)) is not None:
            self._respond(message["status"], headers, body)
        else:
            self._begin(message["status"], headers)

    def _respond(self, status: int, headers: list[Header], body: bytes) -> None:
        """Write a whole response, whose headers say nothing of its length and of the connection."""
        headers.append((b"content-length", b"%d" % len(body)))
        if not self.keep_alive:
            headers.append((b"connection", b"close"))
        head = _head(STATUS_LINE[status], headers)
        self.transport.write(head if self.scope["method"] == "HEAD" else head + body)
        self._complete()

    def _begin(self, status: int, headers: list[Header]) -> None:
        for name, value in headers:
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
        if not self.keep_alive and (b"connection", b"close") not in headers:
            headers.append((b"connection", b"close"))
        bodiless = self.scope["method"] == "HEAD" or status in _WITHOUT_BODY
        if self.chunked_encoding is None and not bodiless:
            if self.scope["http_version"] == "1.0":  # which knows no chunks
                self._until_close = True
            else:
                self.chunked_encoding = True
                headers.append((b"transfer-encoding", b"chunked"))
        head = _head(STATUS_LINE[status], headers)
        if self.chunked_encoding is False and not bodiless:
            self._head = head
        else:
            self.transport.write(head)

    def _write(self, body: bytes, *, last: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            self._write_chunk(body, last=last)
        elif self._until_close:
            self.transport.write(body)
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("Response content longer than Content-Length")
            if self._head:
                body, self._head = self._head + body, b""
            self.transport.write(body)
        if last:
            self._complete()

    def _write_chunk(self, body: bytes, *, last: bool) -> None:
        data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        if last:
            data += b"0\r\n\r\n"
        if data:
            self.transport.write(data)

    def _complete(self) -> None:
        if self.expected_content_length != 0:
            raise RuntimeError("Response content shorter than Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def _head(status_line: bytes, headers: list[Header]) -> bytes:
    """Join a head. Raises RuntimeError for control characters, which could end a header early."""
    head = b"\r\n".join([status_line[:-2], *map(b": ".join, headers), b"", b""])
    if head.translate(None, _TEXT) != b"\r\n" * (2 + len(headers)):
        raise RuntimeError("A header holds a control character.")
    return head


async def _raise(error: BaseException, *_: Any) -> None:
    raise error


async def _return(*_: Any) -> None:
    """Be an application that returns at once."""


def _nothing() -> None:
    """Do nothing at the end of a response."""


def split_target(target: bytes) -> tuple[str, bytes, bytes]:
    """Return the path of a request's target, decoded and as it came, and the query.

    Raises httptools.HttpParserInvalidURLError.
    """
    if b"?" in target or len(target) > _LONGEST_KEPT:
        return _split(target)
    return _split_kept(target)


def _split(target: bytes) -> tuple[str, bytes, bytes]:
    parts = httptools.parse_url(target)
    path = parts.path.decode("ascii")
    return (unquote(path) if "%" in path else path), parts.path, parts.query or b""


_split_kept = lru_cache(maxsize=256)(_split)
