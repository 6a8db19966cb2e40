"""Runs one request of a batch as the route would that it names, at low priority."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import msgspec

from bitinglip.access.keys import Caller
from bitinglip.access.limits.admission import Admission
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.usage.amounts import REQUESTS, TOKENS
from bitinglip.errors import (
    LimitsUnavailable,
    Overloaded,
    QueueFull,
    RateLimitExceeded,
    TaskCancelled,
    Timeout,
    UnsupportedParameter,
)
from bitinglip.guard.guard import Guard
from bitinglip.home import Home
from bitinglip.results.message_pictures import MessagePictures
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.event_log import EventLog
from bitinglip.settings import Settings
from bitinglip.tasks.responses import Responses
from bitinglip.wire.batches import Endpoint
from bitinglip.wire.embedding.openai import EmbeddingRequest
from bitinglip.wire.job_context import JobContext, caller_context
from bitinglip.wire.model_lookup import model_of_kind
from bitinglip.wire.openai_body import unknown_field
from bitinglip.wire.parse import is_large, parse
from bitinglip.wire.prepared import Asking, Prepared, prepare_embedding, prepare_text
from bitinglip.wire.responses.prepared import Keep, prepare_response
from bitinglip.wire.responses.request import ResponsesRequest
from bitinglip.wire.responses.view import ResponseView
from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.openai import ChatCompletionRequest
from model_store.store import ModelStore

#: One thread: a body takes many times its size while it is read, so large ones take turns.
_LARGE_BODIES = ThreadPoolExecutor(1, thread_name_prefix="batches")
_SHORTEST, _LONGEST = 0.5, 60.0  #: seconds until a refused request is tried again

Body = ChatCompletionRequest | CompletionRequest | EmbeddingRequest | ResponsesRequest
Read = Callable[[], Awaitable[bytes]]
#: returns whose request it is, as long as they may run it
Holder = Callable[[], Caller | None]

_BODIES: dict[Endpoint, type[Body]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/responses": ResponsesRequest,
}


class Answer(NamedTuple):
    """Holds the body of a response, and the fields of its request that were ignored."""

    body: bytes
    ignored: list[str]


class Requests:
    """Makes a job of a request, and waits until it has ended."""

    def __init__(
        self,
        settings: Settings,
        home: Home,
        store: ModelStore,
        guard: Guard,
        dispatcher: Dispatcher,
        admission: Admission,
        responses: Responses,
        pictures: MessagePictures,
        count_ignored: Callable[[], None],
    ) -> None:
        """``count_ignored`` is called for each request with fields that were ignored."""
        self._settings = settings
        self._store = store
        self._guard = guard
        self._dispatcher = dispatcher
        self._admission = admission
        self._home = home
        self._responses = responses
        self._pictures = pictures
        self._count_ignored = count_ignored
        self._places = asyncio.Semaphore(settings.batches.lines_at_once)

    async def answer(
        self, holder: Holder, endpoint: Endpoint, read: Read, request_id: str
    ) -> Answer:
        """Return the response to a request, which ``read`` returns the body of.

        It takes the rates of its key as a request does, and waits where these, or a queue, have
        nothing left, or cannot be asked; what waits holds no text in memory. Raises what the route
        raises, and TaskCancelled once its ``holder`` has ended.
        """
        await self._take_rates(holder, endpoint)
        while True:
            event_log: EventLog | None = None
            async with self._places:
                caller, raw = _held(holder), await read()
                prepared = await self._prepared(caller, endpoint, raw, request_id)
                try:
                    held = await self._dispatcher.reserve(prepared.job)
                    with self._dispatcher.open(prepared.job, held=held) as event_log:
                        await event_log.result()
                        shown = prepared.view(event_log)
                        await shown.prepare_final()
                        body = shown.body()
                    if prepared.ignored:
                        self._count_ignored()
                    return Answer(body, prepared.ignored)
                except (QueueFull, Overloaded, RateLimitExceeded, LimitsUnavailable) as refused:
                    wait = refused.retry_after
                except Timeout:  # of one that no worker has had: it has waited only
                    if event_log is None or event_log.dispatched is not None:
                        raise
                    wait = None
                finally:
                    self._pictures.discard(prepared.job)
            await _rest(wait)

    async def _take_rates(self, holder: Holder, endpoint: Endpoint) -> None:
        """Wait for the rates of a request. Raises QuotaExceeded or TaskCancelled."""
        units = (REQUESTS, TOKENS)
        while True:
            caller = _held(holder)
            try:
                refused = await self._admission.charge(
                    caller, LimitClass.INFERENCE, endpoint, units
                )
            except LimitsUnavailable as away:
                refused = away
            if refused is None:
                return
            if not isinstance(refused, RateLimitExceeded | LimitsUnavailable):
                raise refused
            await _rest(refused.retry_after)

    async def _prepared(
        self, caller: Caller, endpoint: Endpoint, raw: bytes, request_id: str
    ) -> Prepared:
        model_of = partial(model_of_kind, self._store, caller)
        context_of = partial(self._context, caller)
        asking = Asking(caller, model_of, context_of, request_id)
        body, ignored = await _parsed(_BODIES[endpoint], raw)
        if getattr(body, "stream", False):
            raise UnsupportedParameter("A request of a batch has no stream.", param="stream")
        match body:
            case EmbeddingRequest():
                prepared = prepare_embedding(asking, body)
            case ResponsesRequest():
                prepared = await self._response(asking, body)
            case ChatCompletionRequest() | CompletionRequest():
                prepared = prepare_text(asking, body)
        ignored += prepared.ignored
        if ignored and self._settings.openai.unknown_fields == "refuse":
            raise unknown_field(ignored[0])
        job = prepared.job
        if job.guard is not None:
            work = await self._guard.checked(job.work, job.guard)
            job = msgspec.structs.replace(job, work=work)
        job = await self._pictures.stored(job, prepared.manifest, field=prepared.field)
        return msgspec.structs.replace(prepared, job=job, ignored=ignored)

    async def _response(self, asking: Asking, body: ResponsesRequest) -> Prepared:
        """Prepare a response, which is kept as its route keeps it."""
        if body.background:
            raise UnsupportedParameter("A request of a batch waits already.", param="background")
        memory = self._dispatcher.delivery.input_memory.growing(asking.caller.key_id)
        asked = await prepare_response(asking, body, self._responses, memory)
        echo = body.echo(asked.job)
        keep = None
        if body.stores:
            keep = Keep(self._responses, asked, echo)
            await self._responses.check_space(asked.items)
        view = partial(ResponseView, request_id=asking.request_id, echo=echo, keep=keep)
        return Prepared(asked.job, view, asked.ignored, asked.manifest, "input")

    def _context(self, caller: Caller, model: str) -> JobContext:
        return caller_context(
            self._settings,
            self._guard,
            caller,
            model,
            "low",
            folder=self._home.files,
            uploads=self._home.uploads,
        )


async def _parsed(model: type[Body], raw: bytes) -> tuple[Body, list[str]]:
    """Read a body, a large one beside the event loop; name its fields that are ignored."""

    def read() -> tuple[Body, list[str]]:
        body = parse(model, raw)
        return body, body.ignored()

    if is_large(raw):
        return await asyncio.get_running_loop().run_in_executor(_LARGE_BODIES, read)
    return read()


def _held(holder: Holder) -> Caller:
    """Return who holds a request. Raises TaskCancelled once that key or token has ended."""
    caller = holder()
    if caller is None:
        raise TaskCancelled()
    return caller


async def _rest(seconds: float | None) -> None:
    await asyncio.sleep(min(_LONGEST, max(_SHORTEST, seconds or 0.0)))
