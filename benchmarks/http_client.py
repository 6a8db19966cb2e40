"""Times what it reads, over keep-alive HTTP/1.1.

The load generator shares its cores with the server under test, so an answer costs it a few string
searches and no JSON. A token is counted where a delta's or a token event's text is not empty;
the answer's own ``completion_tokens`` is kept beside it.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast
from urllib.parse import urlsplit

_TEXT = re.compile(rb'"(?:content|text)": ?"[^"]')
_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
_ERROR = re.compile(rb'^(?:event: ?failed|data: ?\{"error")', re.MULTILINE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_EVENTS = re.compile(rb"\r\ncontent-type: *text/event-stream", re.IGNORECASE)

CONNECTION_LOST = "connection lost"
FAILED_IN_STREAM = "failed in stream"


@dataclass(slots=True)
class Sample:
    """Holds what one request came to; times are of ``perf_counter``."""

    started: float  #: when it was sent, or was due in an open loop
    status: int = 0
    first: float = 0.0  #: first token
    last: float = 0.0  #: latest token
    ended: float = 0.0
    chunks: int = 0  #: tokens seen in the stream
    usage: int | None = None  #: completion tokens, as the server counts them
    gaps: list[float] = field(default_factory=list)  #: between reads that brought tokens
    error: str | None = None

    @property
    def tokens(self) -> int:
        return self.chunks if self.usage is None else self.usage


@dataclass(frozen=True, slots=True)
class Target:
    """Says where requests go and what they say: the bodies are sent in turn, ready made."""

    host: str
    port: int
    requests: tuple[bytes, ...]

    def turns(self) -> Iterator[bytes]:
        while True:
            yield from self.requests


def make_target(url: str, bodies: list[dict[str, Any]], key: str | None = None) -> Target:
    """``url`` with the path; each body becomes one whole request."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// URL")
    port = parts.port or 80
    head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.hostname}:{port}\r\n"
    head += "Content-Type: application/json\r\nAccept: */*\r\n"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    return Target(parts.hostname, port, tuple(_request(head, body) for body in bodies))


def _request(head: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


class Connection(asyncio.Protocol):
    """Holds one connection, for one request at a time."""

    def __init__(self) -> None:
        self._answer: _Answer | None = None
        self._listener: asyncio.Future[Sample] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, target: Target) -> "Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, target.host, target.port)
        return connection

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, due: float | None = None) -> asyncio.Future[Sample]:
        """Send a request; the future ends with the answer, or with a sample whose ``error`` says
        why not."""
        waiter = self._listener = asyncio.get_running_loop().create_future()
        sample = Sample(perf_counter() if due is None else due)
        self._answer = _Answer(sample)
        if self._transport is None or self._transport.is_closing():
            self._finish(CONNECTION_LOST)
        else:
            self._transport.write(request)
        return waiter

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one only in kind

    def data_received(self, data: bytes) -> None:
        if self._answer is not None and self._answer.feed(data, perf_counter()):
            self._finish(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's
        self._transport = None
        self._finish(CONNECTION_LOST)

    def _finish(self, error: str | None) -> None:
        answer, waiter = self._answer, self._listener
        self._answer = self._listener = None
        if answer is None or waiter is None or waiter.done():
            return
        sample = answer.sample
        sample.ended = perf_counter()
        sample.error = sample.error or error
        waiter.set_result(sample)


class _Answer:
    """Reads one answer as its bytes come."""

    __slots__ = ("_chunked", "_in_head", "_left", "_rest", "_text", "_watch", "sample")

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self._in_head = True
        self._rest = b""  #: bytes of the transfer not yet understood
        self._text = b""  #: of the body, not yet counted
        self._left = 0
        self._chunked = False
        self._watch = False

    def feed(self, data: bytes, now: float) -> bool:
        """Tell whether the answer is complete."""
        if self._in_head:
            head, found, data = (self._rest + data).partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                return False
            self._read_head(head)
        body, complete = self._unchunk(data) if self._chunked else self._plain(data)
        if self._watch:
            self._read_events(body, now)
        else:
            self._text += body
        if complete:
            self._close(now)
        return complete

    def _read_head(self, head: bytes) -> None:
        self._in_head = False
        self._rest = b""
        self.sample.status = int(head[9:12])
        self._chunked = _CHUNKED.search(head) is not None
        self._watch = _EVENTS.search(head) is not None
        length = _LENGTH.search(head)
        self._left = int(length[1]) if length else 0

    def _plain(self, data: bytes) -> tuple[bytes, bool]:
        self._left -= len(data)
        return data, self._left <= 0

    def _unchunk(self, data: bytes) -> tuple[bytes, bool]:
        data = self._rest + data if self._rest else data
        pieces, at, complete = [], 0, False
        while (line := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:line], 16)
            end = line + 2 + size
            if end + 2 > len(data):
                break
            pieces.append(data[line + 2 : end])
            at = end + 2
            if size == 0:
                complete = True
                break
        self._rest = data[at:]
        return b"".join(pieces), complete

    def _read_events(self, body: bytes, now: float) -> None:
        text = self._text + body
        cut = text.rfind(b"\n\n") + 2
        if cut < 2:
            self._text = text
            return
        events, self._text = text[:cut], text[cut:]
        if found := len(_TEXT.findall(events)):
            self._count(found, now)
        if b"completion_tokens" in events or b"rror" in events or b"failed" in events:
            self._read_usage(events)

    def _count(self, tokens: int, now: float) -> None:
        sample = self.sample
        if sample.chunks:
            sample.gaps.append(now - sample.last)
        else:
            sample.first = now
        sample.last = now
        sample.chunks += tokens

    def _read_usage(self, text: bytes) -> None:
        if found := _USAGE.search(text):
            self.sample.usage = int(found[1])
        if _ERROR.search(text):
            self.sample.error = FAILED_IN_STREAM

    def _close(self, now: float) -> None:
        if not self._watch:
            self.sample.first = now
            self._read_usage(self._text)
        if self.sample.status != 200 and self.sample.error is None:
            self.sample.error = str(self.sample.status)
