"""Runs one request of a batch as the route would that it names, at low priority."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import msgspec

from bitinglip.access.keys import Caller
from bitinglip.access.limits.admission import Admission
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.usage.amounts import REQUESTS, TOKENS
from bitinglip.errors import (
    Overloaded,
    QueueFull,
    RateLimitExceeded,
    TaskCancelled,
    Timeout,
    UnsupportedParameter,
)
from bitinglip.guard.guard import Guard
from bitinglip.home import Home
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job
from bitinglip.settings import Settings
from bitinglip.wire.batches import Endpoint
from bitinglip.wire.embedding.openai import EmbeddingRequest
from bitinglip.wire.embedding.openai_view import EmbeddingView
from bitinglip.wire.job_context import JobContext, caller_context
from bitinglip.wire.model_lookup import check_embeds, model_of_kind
from bitinglip.wire.openai_body import OpenAIRequest, unknown_field
from bitinglip.wire.openai_view import OpenAIView
from bitinglip.wire.parse import is_large, parse
from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.length import check_length
from bitinglip.wire.text.openai import ChatCompletionRequest
from bitinglip.wire.text.openai_view import ChatView, CompletionView
from bitinglip.wire.text.switches import Switches
from model_store.store import ModelStore

#: One thread: a body takes many times its size while it is read, so large ones take turns.
_LARGE_BODIES = ThreadPoolExecutor(1, thread_name_prefix="batches")
_SHORTEST, _LONGEST = 0.5, 60.0  #: seconds until a refused request is tried again

M = TypeVar("M", bound=OpenAIRequest)
View = Callable[[EventLog], OpenAIView]
Read = Callable[[], Awaitable[bytes]]
#: returns whose request it is, as long as they may run it
Holder = Callable[[], Caller | None]


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
    ) -> None:
        self._settings = settings
        self._store = store
        self._guard = guard
        self._dispatcher = dispatcher
        self._admission = admission
        self._home = home
        self._places = asyncio.Semaphore(settings.batches.lines_at_once)

    async def answer(
        self, holder: Holder, endpoint: Endpoint, read: Read, request_id: str
    ) -> bytes:
        """Return the body of the response to a request, which ``read`` returns the body of.

        It takes the rates of its key as a request does, and waits where these, or a queue, have
        nothing left; what waits holds no text in memory. Raises what the route raises, and
        TaskCancelled once nobody is its ``holder`` any more.
        """
        await self._take_rates(holder, endpoint)
        while True:
            event_log: EventLog | None = None
            async with self._places:
                job, view = await self._job(_held(holder), endpoint, await read(), request_id)
                try:
                    with self._dispatcher.open(job) as event_log:
                        await event_log.result()
                        shown = view(event_log)
                        await shown.prepare_final()
                        return shown.body()
                except (QueueFull, Overloaded, RateLimitExceeded) as refused:
                    wait = refused.retry_after
                except Timeout:  # of one that no worker has had: it has waited only
                    if event_log is None or event_log.dispatched is not None:
                        raise
                    wait = None
            await _rest(wait)

    async def _take_rates(self, holder: Holder, endpoint: Endpoint) -> None:
        """Wait for the rates of a request. Raises QuotaExceeded or TaskCancelled."""
        units = (REQUESTS, TOKENS)
        while True:
            caller = _held(holder)
            refused = await self._admission.charge(caller, LimitClass.INFERENCE, endpoint, units)
            if refused is None:
                return
            if not isinstance(refused, RateLimitExceeded):
                raise refused
            await _rest(refused.retry_after)

    async def _job(
        self, caller: Caller, endpoint: Endpoint, raw: bytes, request_id: str
    ) -> tuple[Job, View]:
        if endpoint == "/v1/embeddings":
            texts = await self._body(EmbeddingRequest, raw)
            job, view = self._embedding(caller, texts, request_id)
        elif endpoint == "/v1/completions":
            completion = await self._body(CompletionRequest, raw)
            job, view = self._text(caller, completion, CompletionView, request_id)
        else:
            chat = await self._body(ChatCompletionRequest, raw)
            job, view = self._text(caller, chat, ChatView, request_id)
        if job.guard is not None:
            work = await self._guard.checked(job.work, job.guard)
            job = msgspec.structs.replace(job, work=work)
        return job, view

    async def _body(self, model: type[M], raw: bytes) -> M:
        if is_large(raw):
            loop = asyncio.get_running_loop()
            body = await loop.run_in_executor(_LARGE_BODIES, parse, model, raw)
        else:
            body = parse(model, raw)
        if getattr(body, "stream", False):
            raise UnsupportedParameter("A request of a batch has no stream.", param="stream")
        self._refuse_unknown(body.ignored())
        return body

    def _embedding(
        self, caller: Caller, body: EmbeddingRequest, request_id: str
    ) -> tuple[Job, View]:
        check_embeds(model_of_kind(self._store, caller, body.model, "embedding"))
        encoding = body.encoding_format or "float"
        view = partial(EmbeddingView, request_id=request_id, encoding=encoding)
        return body.to_job(self._context(caller, body.model)), view

    def _text(
        self,
        caller: Caller,
        body: ChatCompletionRequest | CompletionRequest,
        view: type[ChatView] | type[CompletionView],
        request_id: str,
    ) -> tuple[Job, View]:
        manifest = model_of_kind(self._store, caller, body.model, "text")
        if isinstance(body, Switches):
            self._refuse_unknown(body.unknown_switches(manifest.template_switches))
        context = self._context(caller, body.model)
        job = body.to_job(context)
        check_length(job, manifest, context.model_settings.max_context)
        return job, partial(view, request_id=request_id, include_usage=False)

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

    def _refuse_unknown(self, names: list[str]) -> None:
        if names and self._settings.openai.unknown_fields == "refuse":
            raise unknown_field(names[0])


def _held(holder: Holder) -> Caller:
    """Return who holds a request. Raises TaskCancelled once nobody does."""
    caller = holder()
    if caller is None:
        raise TaskCancelled()
    return caller


async def _rest(seconds: float | None) -> None:
    await asyncio.sleep(min(_LONGEST, max(_SHORTEST, seconds or 0.0)))
