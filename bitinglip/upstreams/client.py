"""Speaks HTTP with the servers that answer for models; connections are kept and shared."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import structlog

from bitinglip.settings.upstream import Upstream
from bitinglip.upstreams.answer import AnswerReader, BadAnswer
from bitinglip.upstreams.answer_memory import MOST_ANSWER, AnswerMemory
from bitinglip.upstreams.embeddings import embedding_done, embedding_request
from bitinglip.upstreams.form import FilePart, Form
from bitinglip.upstreams.http import (
    Body,
    NothingSent,
    error_of,
    event_data,
    is_clients,
    message_of,
    reason_of,
    send,
)
from bitinglip.upstreams.images import edit_form, image_done, image_request, most_bytes
from bitinglip.upstreams.request import LONG, Request, encoded, request_of, takes_long
from bitinglip.upstreams.servers import Server, Servers
from bitinglip.upstreams.speech import speech_done, speech_request
from bitinglip.upstreams.transcripts import (
    MOST_TRANSCRIPT,
    transcript_done,
    transcript_fields,
    transcript_path,
)
from bitinglip.work.text import likely_prompt_tokens
from workers.codes import Code
from workers.engines.base import Refused
from workers.protocol import (
    EmbeddingDone,
    EmbeddingJob,
    Event,
    ImageDone,
    ImageJob,
    SpeechDone,
    SpeechJob,
    TextDone,
    TextJob,
    TranscriptionDone,
    TranscriptionJob,
)
from workers.secret_files import SecretFileRefused, read_secret_text

T = TypeVar("T")
J = TypeVar("J")
log = structlog.get_logger(__name__)

_PROBE_SECONDS = 5.0
#: answers that another server may do better; nothing of the answer has been made
_ELSEWHERE = (429, 502, 503, 529)
#: statuses whose message is for the client
_CODES: dict[int, Code] = {
    400: "INVALID_REQUEST",
    413: "PAYLOAD_TOO_LARGE",
    422: "INVALID_REQUEST",
}
Tell = Callable[[list[Event]], Awaitable[None]]  #: raises BadAnswer for what cannot be passed on
_AWAY = "No server that this model stands for answers; try again later."


class UpstreamClient:
    """Asks the servers of one model."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        memory: AnswerMemory,
        upstream: Upstream,
        name: str,
        servers: Servers,
    ) -> None:
        """``memory`` is common to all models, as ``http`` is."""
        self._http = http
        self._memory = memory
        self._upstream = upstream
        self._model = upstream.model or name
        self.servers = servers
        self._headers: dict[str, str] = {}
        self._key = ""
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=upstream.connect_timeout, sock_read=upstream.read_timeout
        )

    async def open(self) -> None:
        """Read the key, and find a server that answers. Raises Refused if none does."""
        if (path := self._upstream.key_file) is not None:
            try:
                key = await asyncio.to_thread(read_secret_text, path)
            except SecretFileRefused as error:  # clients are told no path
                raise _not_loaded(f"upstream.key_file {error.why}.") from error
            if not (key and key.isascii() and key.isprintable()):
                raise _not_loaded("upstream.key_file must hold one line: the key.")
            self._key = key
            self._headers["authorization"] = f"Bearer {key}"
        whys = await asyncio.gather(*(self.probe(each) for each in self.servers.all))
        for server, why in zip(self.servers.all, whys, strict=True):
            if why:  # clients are told the reason, and the log alone the address
                log.warning("an upstream server failed", server=server.url, reason=why)
        if all(whys):
            raise _not_loaded(f"No server that this model stands for can be used: {whys[0]}")

    async def probe(self, server: Server) -> str | None:
        """List a server's models; return what is wrong with the server, or None."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                url = f"{server.url}/models"
                answer = await self._http.get(url, headers=self._headers, allow_redirects=False)
                answer.close()  # its status tells enough, and what it says has no end that is known
        except (aiohttp.ClientError, TimeoutError) as error:
            return self._fails(server, f"it does not answer: {reason_of(error)}")
        if answer.status in (401, 403):
            return self._fails(server, "it refuses the key in upstream.key_file.")
        if 300 <= answer.status < 400:
            return self._fails(server, "it redirects, which is not followed: name what it names.")
        if answer.status >= 500:
            return self._fails(server, f"it answers with status {answer.status}.")
        self.servers.answered(server)
        return None

    async def run(self, job: TextJob, reader: AnswerReader, tell: Tell) -> TextDone:
        """Run a text job on one of the servers; ``tell`` gets its events as they come.

        Raises Refused. A request goes to another server only if the first one did not take it.
        """

        prompt_tokens = 0

        def made(job: TextJob, model: str) -> Request:
            nonlocal prompt_tokens
            prompt_tokens = likely_prompt_tokens(job)
            return request_of(job, model)

        async def read(answer: aiohttp.ClientResponse) -> TextDone:
            reader.begin(prompt_tokens)
            return await self._read(answer, reader, tell)

        path, body = await _made(made, job, self._model, aside=takes_long(job))
        return await self._ask(self.servers.order(job), path, body, job.trace, read)

    async def embed(self, job: EmbeddingJob) -> EmbeddingDone:
        """Run an embedding job on one of the servers; raises as ``run`` does."""

        async def read(answer: aiohttp.ClientResponse) -> EmbeddingDone:
            return await self._memory.read(answer, MOST_ANSWER, partial(embedding_done, job))

        aside = sum(map(len, job.texts)) + len(job.query or "") > LONG
        path, body = await _made(embedding_request, job, self._model, aside=aside)
        return await self._ask(self.servers.order(), path, body, job.trace, read)

    async def transcribe(self, job: TranscriptionJob) -> TranscriptionDone:
        """Run a transcription job on one of the servers; raises as ``run`` does."""

        async def read(answer: aiohttp.ClientResponse) -> TranscriptionDone:
            return await self._memory.read(answer, MOST_TRANSCRIPT, partial(transcript_done, job))

        path = transcript_path(job)
        file = FilePart("file", Path(job.path), "audio")
        form = Form(transcript_fields(job, self._model), file)
        return await self._ask(self.servers.order(), path, form, job.trace, read)

    async def speak(self, job: SpeechJob, tell: Tell) -> SpeechDone:
        """Run a speech job on one of the servers, into the job's file; raises as ``run`` does."""

        async def read(answer: aiohttp.ClientResponse) -> SpeechDone:
            media_type = answer.headers.get("content-type", "")
            return await speech_done(job, media_type, answer.content.iter_any(), tell)

        aside = len(job.text) > LONG
        path, body = await _made(speech_request, job, self._model, aside=aside)
        return await self._ask(self.servers.order(), path, body, job.trace, read)

    async def draw(self, job: ImageJob) -> ImageDone:
        """Run an image job on one of the servers, into files; raises as ``run`` does."""

        async def read(answer: aiohttp.ClientResponse) -> ImageDone:
            return await self._memory.read(answer, most_bytes(job), partial(image_done, job))

        if job.image is None:
            aside = len(job.prompt) + len(job.negative_prompt or "") > LONG
            path, body = await _made(image_request, job, self._model, aside=aside)
        else:
            path, fields, _ = image_request(job, self._model)
            body = await asyncio.to_thread(edit_form, job, fields)
        return await self._ask(self.servers.order(), path, body, job.trace, read)

    async def _ask(
        self,
        order: Sequence[Server],
        path: str,
        body: Body,
        trace: str | None,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
    ) -> T:
        headers = dict(self._headers)
        if trace is not None:
            headers["traceparent"] = trace
        last = Refused("WORKER_CRASHED", _AWAY)
        for server in order:
            self.servers.took(server)
            try:
                async with self._answer(server, path, body, headers) as answer:
                    return await read(answer)
            except NothingSent as error:
                self._note_failure(server, error.__cause__)
                if isinstance(error.__cause__, Refused):
                    last = error.__cause__
            except (aiohttp.ClientError, TimeoutError, BadAnswer) as error:
                self._note_failure(server, error)
                text = f"The server that this model stands for broke off: {reason_of(error)}"
                raise Refused("WORKER_CRASHED", text) from error
            finally:
                server.running -= 1
        raise last

    def _note_failure(self, server: Server, error: BaseException | None) -> None:
        if server.is_well:
            log.warning("an upstream server failed", server=server.url, error=type(error).__name__)
        away = f"it did not answer: {reason_of(error)}"
        self._fails(server, "it answered with an error." if isinstance(error, Refused) else away)

    def _fails(self, server: Server, reason: str) -> str:
        self.servers.failed(server, reason)
        return reason

    @contextlib.asynccontextmanager
    async def _answer(
        self, server: Server, path: str, body: Body, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; raises NothingSent, or Refused for an answer that is an error."""
        answer = await send(self._http, f"{server.url}/{path}", body, headers, self._timeout)
        try:
            if answer.status != 200:
                message = self._tellable(await error_of(answer), answer)
                refused = _refused(answer.status, message)
                if answer.status in _ELSEWHERE:
                    raise NothingSent from refused
                raise refused
            self.servers.answered(server)
            yield answer
        finally:
            answer.close()  # which keeps the connection of an answer that was read whole

    async def _read(
        self, answer: aiohttp.ClientResponse, reader: AnswerReader, tell: Tell
    ) -> TextDone:
        async for lines in event_data(answer, reader.most_bytes):
            events: list[Event] = []
            for data in lines:
                long = len(data) > LONG
                chunk = await asyncio.to_thread(_chunk, data) if long else _chunk(data)
                if isinstance(chunk, dict) and chunk.get("error"):
                    message = self._tellable(message_of(chunk), answer)
                    code: Code = "INVALID_REQUEST" if is_clients(chunk) else "INFERENCE_FAILED"
                    raise Refused(code, message or "The server gave no reason.")
                events += reader.take(chunk)
            if events:
                await tell(events)
        return reader.done()

    def _tellable(self, message: str, answer: aiohttp.ClientResponse) -> str:
        """Return a server's message as a client may read it: as text, and without our key and its
        address."""
        host = answer.url.host or ""
        address = host if "." in host or ":" in host else ""  # else it may be any word
        for secret in (self._key, answer.url.authority, address):
            if secret:
                message = message.replace(secret, "***")
        return message.encode(errors="replace").decode()


async def _made(
    make: Callable[[J, str], Request], job: J, model: str, *, aside: bool = False
) -> tuple[str, Body]:
    """Return the path and the body of a request. Raises Refused.

    ``aside``: that takes too long for the event loop.
    """

    def made() -> tuple[str, Body]:
        request = make(job, model)
        return request.path, encoded(request)

    return await asyncio.to_thread(made) if aside else made()


def _chunk(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadAnswer("an event of its answer is no JSON.") from error


def _refused(status: int, message: str) -> Refused:
    """Return our error for an upstream's; a refused key is not the client's."""
    if status in _CODES and message:
        return Refused(_CODES[status], message)
    if status in (429, 503, 529):
        return Refused("OVERLOADED", "The server that this model stands for is busy.")
    if status in (401, 403):
        return Refused("INFERENCE_FAILED", "The server that this model stands for refuses our key.")
    if status == 404:
        text = "The server that this model stands for does not have it (upstream.model)."
        return Refused("INFERENCE_FAILED", text)
    text = f"The server that this model stands for answered with status {status}."
    return Refused("INFERENCE_FAILED", text)


def _not_loaded(text: str) -> Refused:
    return Refused("MODEL_LOAD_FAILED", text)
