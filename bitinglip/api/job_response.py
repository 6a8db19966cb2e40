"""Responds with a job's result over one connection: as one body, or as a stream of events."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bitinglip.api.guarding import checked_job
from bitinglip.api.request_context import WHOLE_BODY, context_of
from bitinglip.api.services import services_in
from bitinglip.api.stream_writer import ClientGone, Connection, StreamWriter
from bitinglip.errors import BitingLipError, TaskCancelled
from bitinglip.results.cache.cache import BYPASS, ResponseCache
from bitinglip.results.cache.control import cache_control
from bitinglip.results.streams import View, chunks
from bitinglip.results.uploads import Uploads
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.event_log import EventLog, error_of, failed_with
from bitinglip.scheduling.job import Claim, Job
from bitinglip.wire.errors import name_as_openai
from workers import protocol


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
        assert services is not None, "requests are refused until the server is up"
        self._silence = services.settings.server.stream_comment_interval
        try:
            context_of(scope).job = (self._job.model, None)
            if self._job.guard is not None:
                self._job = await checked_job(scope, self._job)
            if services.cache.enabled:
                await self._run_cached(services.cache, scope, receive, send)
                return
            try:
                held = None
                if self._dispatcher.shared is not None:
                    held = await self._dispatcher.reserve(self._job)
                with self._dispatcher.open(self._job, held=held) as event_log:
                    await self._answer(event_log, BYPASS, scope, receive, send)
            finally:
                self._uploads.discard(self._job)
        except ClientGone:
            return
        except BitingLipError as error:
            if scope["path"].startswith("/v1/"):
                name_as_openai(error, self._job.kind)
            raise

    async def _run_cached(
        self, cache: ResponseCache, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer from the cache, from another request's job, or from the job, as the cache says.

        It may wait for another request's job, and a stream that does so begins with comments.
        """
        asked, caller = cache_control(scope["headers"]), scope["bitinglip.caller"]
        writer = None
        if self._job.stream:
            writer = self._writer(self._view(EventLog(self._job)), scope, send)
        async with AsyncExitStack() as stack:
            try:
                with Connection(receive, writer.idle if writer else None):
                    found = await stack.enter_async_context(cache.open(self._job, caller, asked))
            except BitingLipError as error:
                if writer is None or not writer.begun:
                    raise
                await writer.write(self._late(error), last=True)
                return
            await self._answer(found.event_log, found.outcome, scope, receive, send, writer)

    def _late(self, error: BitingLipError) -> bytes:
        """Show an error in a stream that has begun, though there is no job."""
        event_log = EventLog(self._job)
        return self._view(event_log).render(failed_with(self._job.id, error))

    def _writer(self, view: View, scope: Scope, send: Send) -> StreamWriter:
        return StreamWriter(scope, send, media_type=view.stream_media_type, interval=self._silence)

    def _answer(
        self,
        event_log: EventLog,
        outcome: bytes,
        scope: Scope,
        receive: Receive,
        send: Send,
        writer: StreamWriter | None = None,
    ) -> Awaitable[None]:
        """Send the answer, as one body or as a stream."""
        context_of(scope).job = (self._job.model, self._job.id)
        place = event_log.place
        headers = [
            (b"x-queue-position", b"%d" % (place.position if place else 0)),
            (b"x-cache", outcome),
        ]
        if not self._job.stream:
            return self._send_body(event_log, headers, scope, receive, send)
        view = self._view(event_log)
        writer = writer or self._writer(view, scope, send)
        writer.shows(event_log, headers)
        return self._send_stream(event_log, view, writer, receive)

    async def _send_body(
        self,
        event_log: EventLog,
        headers: list[tuple[bytes, bytes]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        with Connection(receive):
            await event_log.result()
            view = self._view(event_log)
            await view.prepare_final()
        context_of(scope).engine_seconds = (
            event_log.ended or event_log.submitted
        ) - event_log.submitted
        headers.append((b"content-type", view.media_type.encode()))
        begin = {"type": "http.response.start", "status": 200, "headers": headers}
        if WHOLE_BODY in scope.get("extensions", ()):
            begin[WHOLE_BODY] = view.body()
            await send(begin)
        else:
            await _send_parts(send, begin, view.body())

    async def _send_stream(
        self, event_log: EventLog, view: View, writer: StreamWriter, receive: Receive
    ) -> None:
        with Connection(receive, writer.idle):
            if view.starts_immediately and not writer.begun:
                await writer.begin()
            async for data, last in chunks(event_log, view):
                if not writer.begun:
                    _refuse_early(event_log)
                    await writer.begin()
                await writer.write(data, last=last)


class FollowedJob(JobResponse):
    """Streams the events of a task, which goes on without its client.

    The stream ends with the key or token of the client that follows, whose key the task may not be.
    """

    def __init__(self, event_log: EventLog, view: View, claim: Claim) -> None:
        self.background = None
        self._event_log = event_log
        self._followed_by = view
        self._claim = claim

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = services_in(scope)
        assert services is not None, "requests are refused until the server is up"
        self._silence = services.settings.server.stream_comment_interval
        writer = self._writer(self._followed_by, scope, send)
        writer.shows(self._event_log, [])
        with services.revocation.connection(self._claim) as ended, suppress(ClientGone):
            stream = asyncio.create_task(
                self._send_stream(self._event_log, self._followed_by, writer, receive)
            )
            cut = asyncio.create_task(ended.wait())
            try:
                await asyncio.wait([stream, cut], return_when=asyncio.FIRST_COMPLETED)
                if stream.done():
                    await stream
                    return
            finally:
                stream.cancel()
                cut.cancel()
                await asyncio.gather(stream, cut, return_exceptions=True)
            if not writer.begun:
                raise TaskCancelled()
            await writer.write(b"", last=True)


async def _send_parts(send: Send, begin: dict[str, Any], body: bytes) -> None:
    """Send a response of one body to a server that knows plain ASGI only."""
    begin["headers"].append((b"content-length", b"%d" % len(body)))
    await send(begin)
    await send({"type": "http.response.body", "body": body})


def _refuse_early(event_log: EventLog) -> None:
    """Raise the error of a job that failed before any output, for an ordinary error response."""
    if event_log.output_seen:
        return
    if isinstance(event_log.final, protocol.Failed):
        raise error_of(event_log.final)
    if isinstance(event_log.final, protocol.Cancelled):
        raise TaskCancelled()
