"""Responds with a job's result over one connection: as one body, or as a stream of events."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bitinglip.api.guarding import checked_job
from bitinglip.api.request_context import context_of
from bitinglip.api.services import services_in
from bitinglip.errors import TaskCancelled
from bitinglip.results.cache.cache import BYPASS, ResponseCache
from bitinglip.results.cache.control import cache_control
from bitinglip.results.streams import KEEP_ALIVE, KEEP_ALIVE_SECONDS, View, chunks
from bitinglip.results.uploads import Uploads
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.event_log import EventLog, error_of
from bitinglip.scheduling.job import Job
from workers import protocol

_GRACE_SECONDS = 0.1  #: an answer that takes longer gets a task that watches its connection
SEND_TIMEOUT = 60.0  #: seconds; a client that reads nothing for so long is disconnected
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client has closed the connection."""


class JobResponse(Response):
    """Runs a job and sends its events.

    The job lives as long as this call: leaving the ``with`` ends a job that still runs, whether
    the response is complete, has failed, or has lost its client.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        uploads: Uploads,
        job: Job,
        view: Callable[[EventLog], View],
    ) -> None:
        self.background = None
        self._uploads = uploads
        self._dispatcher = dispatcher
        self._job = job
        self._view = view

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = services_in(scope)
        try:
            if self._job.guard is not None:
                self._job = await checked_job(scope, self._job)
            if services is not None and services.cache.enabled:
                await self._run_cached(services.cache, scope, receive, send)
            else:
                await self._run(scope, receive, send)
        except ClientGone:
            return

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._dispatcher.open(self._job) as event_log:
                await self._answer(event_log, BYPASS, scope, receive, send)
        finally:
            self._uploads.discard(self._job)

    async def _run_cached(
        self, cache: ResponseCache, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer from the cache, from another request's job, or from the job, as the cache says."""
        asked, caller = cache_control(scope["headers"]), scope["bitinglip.caller"]
        async with AsyncExitStack() as stack:
            async with Connection(receive):  # it may wait for another request's job
                found = await stack.enter_async_context(cache.open(self._job, caller, asked))
            await self._answer(found.event_log, found.outcome, scope, receive, send)

    async def _answer(
        self, event_log: EventLog, outcome: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        place = event_log.place
        headers = [
            (b"x-queue-position", b"%d" % (place.position if place else 0)),
            (b"x-cache", outcome),
        ]
        answer = self._send_stream if self._job.stream else self._send_body
        await answer(event_log, headers, scope, receive, send)

    async def _send_body(
        self,
        event_log: EventLog,
        headers: list[tuple[bytes, bytes]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        async with Connection(receive):
            await event_log.result()
            view = self._view(event_log)
            await view.prepare_final()
        context_of(scope).engine_seconds = (
            event_log.ended or event_log.submitted
        ) - event_log.submitted
        body = view.body()
        headers += [
            (b"content-type", view.media_type.encode()),
            (b"content-length", b"%d" % len(body)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _send_stream(
        self,
        event_log: EventLog,
        headers: list[tuple[bytes, bytes]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        view = self._view(event_log)
        writer = _Writer(send, headers, view.stream_media_type)
        async with Connection(receive, writer.idle):
            if view.starts_immediately:
                await writer.begin()
            async for data, last in chunks(event_log, view):
                if not writer.begun:
                    _refuse_early(event_log)
                    context_of(scope).engine_seconds = time.monotonic() - event_log.submitted
                    await writer.begin()
                await writer.write(data, last=last)


def _refuse_early(event_log: EventLog) -> None:
    """Raise the error of a job that failed before any output, for an ordinary error response."""
    if event_log.output_seen:
        return
    if isinstance(event_log.final, protocol.Failed):
        raise error_of(event_log.final)
    if isinstance(event_log.final, protocol.Cancelled):
        raise TaskCancelled()


class _Writer:
    """Writes the body of a stream, and comments that keep the connection alive while it is idle."""

    def __init__(
        self, send: Send, headers: list[tuple[bytes, bytes]], stream_media_type: str | None
    ) -> None:
        self._send = send
        self._headers = [*_STREAM_HEADERS, *headers]
        if stream_media_type is not None:
            self._headers = [(b"content-type", stream_media_type.encode()), *headers]
        self._comments = stream_media_type is None  #: whether the stream may hold any
        self._last_write = time.monotonic()
        self._writing = False
        self._ended = False
        self.begun = False

    async def begin(self) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        self._writing, self._ended = True, last
        self._last_write = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        self._writing = False

    async def idle(self) -> None:
        """Write a comment if the stream is idle. Raises ClientGone if the client reads no more."""
        silent = time.monotonic() - self._last_write
        if self._writing and silent > SEND_TIMEOUT:
            raise ClientGone
        quiet = self.begun and not self._writing and not self._ended
        if quiet and self._comments and silent > KEEP_ALIVE_SECONDS / 2:
            await self.write(KEEP_ALIVE)


class Connection:
    """Raises ClientGone inside its ``async with`` block when the client disconnects."""

    def __init__(self, receive: Receive, idle: Callable[[], Awaitable[None]] | None = None) -> None:
        self._receive = receive
        self._idle = idle
        self._gone = False

    async def __aenter__(self) -> None:
        owner = asyncio.current_task()
        assert owner is not None
        self._owner = owner
        self._watcher: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._start)

    def _start(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and kind is asyncio.CancelledError:
            self._owner.uncancel()
            raise ClientGone from None

    async def _watch(self) -> None:
        try:
            while not await self._disconnected():
                if self._idle is not None:
                    await self._idle()
        except ClientGone:
            pass
        self._gone = True
        self._owner.cancel()

    async def _disconnected(self) -> bool:
        """Return True once the client has disconnected, else False after KEEP_ALIVE_SECONDS."""
        try:
            async with asyncio.timeout(KEEP_ALIVE_SECONDS if self._idle else None):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return False
        return True
