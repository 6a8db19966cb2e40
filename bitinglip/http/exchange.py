"""Handles one request and its response on a connection, as uvicorn does, with a quicker way to
write."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

Header = tuple[bytes, bytes]
#: what may stand in a header; without these, nothing but our own line ends is left of a head
_TEXT = bytes(byte for byte in range(256) if byte == 9 or (byte >= 32 and byte != 127))
_WITHOUT_BODY = (204, 304)
_LONGEST_KEPT = 128  #: bytes of a target whose parts are kept


class Exchange(RequestResponseCycle):
    """Writes a response of declared length in one piece: one call, one record of TLS."""

    _head = b""  #: waits for the first part of the body
    _until_close = False  #: the end of the connection is that of the body

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
        else:
            self.response_started = True
            self.waiting_for_100_continue = False
            self._begin(message["status"], [*self.default_headers, *message.get("headers", ())])

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


def _head(status_line: bytes, headers: Iterable[Header]) -> bytes:
    """Join a head. Raises RuntimeError for control characters, which could end a header early."""
    lines = [status_line]
    lines += [b"%b: %b\r\n" % header for header in headers]
    head = b"".join(lines)
    if head.translate(None, _TEXT) != b"\r\n" * len(lines):
        raise RuntimeError("A header holds a control character.")
    return head + b"\r\n"


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
