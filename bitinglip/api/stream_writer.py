"""Writes streams, and watches the connections of requests that take their time."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

from starlette.types import Receive, Scope, Send

from bitinglip.api.request_context import context_of
from bitinglip.coarse_timer import CoarseTimer
from bitinglip.results.streams import comment
from bitinglip.scheduling.event_log import EventLog

_GRACE_SECONDS = 0.1  #: an answer that takes longer gets a task that watches its connection
SEND_TIMEOUT = 60.0  #: seconds; a client that reads nothing for so long is disconnected
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client has closed the connection."""


class StreamWriter:
    """Writes the body of a stream, and comments while it is silent.

    Proxies end connections on which nothing comes, so a stream without output for ``interval``
    seconds begins with a comment; what fails later fails inside of it.
    """

    def __init__(
        self, scope: Scope, send: Send, *, media_type: str | None, interval: float
    ) -> None:
        """Set up; ``media_type``: of a stream that is no stream of events and has no comments."""
        self._scope = scope
        self._send = send
        self._interval = interval
        self._comments = media_type is None
        self._headers = _STREAM_HEADERS
        if media_type is not None:
            self._headers = [(b"content-type", media_type.encode())]
        self._event_log: EventLog | None = None
        self._created = self._last_write = time.monotonic()
        self._writing = False
        self._ended = False
        self.begun = False

    def shows(self, event_log: EventLog, headers: list[tuple[bytes, bytes]]) -> None:
        """Take what the stream shows; the headers are lost if it has begun without them."""
        self._event_log = event_log
        self._headers = [*self._headers, *headers]

    async def begin(self) -> None:
        self.begun = True
        log = self._event_log
        began = self._created if log is None else log.submitted
        context_of(self._scope).engine_seconds = time.monotonic() - began
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        self._writing, self._ended = True, last
        self._last_write = time.monotonic()
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        finally:
            self._writing = False

    async def idle(self) -> float:
        """Write a comment if the stream has been silent; return the seconds until the next look.

        Raises ClientGone if the client reads no more.
        """
        silent = time.monotonic() - self._last_write
        if self._writing:
            if silent > SEND_TIMEOUT:
                raise ClientGone
            return min(self._interval, SEND_TIMEOUT)
        if self._comments and not self._ended:
            if silent < self._interval:
                return self._interval - silent
            if not self.begun:
                await self.begin()
            await self.write(comment(self._event_log))
        return self._interval


class Connection:
    """Raises ClientGone inside its ``with`` block when the client disconnects."""

    def __init__(
        self, receive: Receive, idle: Callable[[], Awaitable[float]] | None = None
    ) -> None:
        """``idle`` is called again and again, after as many seconds as it returns."""
        self._receive = receive
        self._idle = idle
        self._gone = False

    def __enter__(self) -> None:
        self._slot = _in_grace.timer.add(self, _GRACE_SECONDS)
        owner = asyncio.current_task()
        assert owner is not None
        self._owner = owner
        self._watcher: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Begin to look whether the client is there still."""
        self._watcher = asyncio.create_task(self._watch())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _in_grace.timer.discard(self, self._slot)
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and kind is asyncio.CancelledError:
            self._owner.uncancel()
            raise ClientGone from None

    async def _watch(self) -> None:
        try:
            seconds = None
            while True:
                if self._idle is not None:
                    seconds = await self._idle()
                if await self._disconnected(seconds):
                    break
        except ClientGone:
            pass
        self._gone = True
        self._owner.cancel()

    async def _disconnected(self, seconds: float | None) -> bool:
        """Return True once the client has disconnected, False after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return False
        return True


class _OfThread(threading.local):
    """Holds a timer for each event loop: two gateways in one process have a thread each."""

    def __init__(self) -> None:
        self.timer: CoarseTimer[Connection] = CoarseTimer(Connection.watch, step=_GRACE_SECONDS)


_in_grace = _OfThread()
