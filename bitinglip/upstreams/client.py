"""Speaks HTTP with the servers that answer for models; connections are kept and shared."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar

import certifi
import httpx
import structlog

from bitinglip.settings.upstream import Upstream
from bitinglip.upstreams.answer import AnswerReader, BadAnswer
from bitinglip.upstreams.embeddings import embedding_done, embedding_request
from bitinglip.upstreams.form import Form
from bitinglip.upstreams.images import image_done, image_request, most_bytes
from bitinglip.upstreams.request import encoded, reads_files, request_of
from bitinglip.upstreams.servers import Server, Servers
from bitinglip.upstreams.speech import speech_done, speech_request
from bitinglip.upstreams.transcripts import (
    transcript_done,
    transcript_fields,
    transcript_path,
)
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

T = TypeVar("T")
log = structlog.get_logger(__name__)

#: no bound of its own: each model runs as many requests at once as it has slots
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
#: what is unpacked cannot be bounded before it is there
_HEADERS = {"accept-encoding": "identity"}
_MOST_LINE = 1 << 20  #: bytes of one event of an answer
_MOST_ANSWER = 64 << 20  #: bytes of an answer that is no stream
_MOST_ERROR = 64 << 10  #: bytes that are read of an error
_PROBE_SECONDS = 5.0
_END_SECONDS = 0.5  #: for the end of an answer after its last event
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


def open_http() -> httpx.AsyncClient:
    """Return what all models' requests go through; it keeps nothing that servers set."""
    cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    trust = ssl.create_default_context()  # the system's authorities, and SSL_CERT_FILE
    trust.load_verify_locations(certifi.where())
    return httpx.AsyncClient(
        limits=_LIMITS,
        headers=_HEADERS,
        cookies=cookies,
        verify=trust,
        trust_env=False,
        follow_redirects=False,
    )


class NothingSent(Exception):
    """A server did not take the request: another one may be asked."""


class UpstreamClient:
    """Asks the servers of one model."""

    def __init__(self, http: httpx.AsyncClient, upstream: Upstream, name: str, servers: Servers):
        self._http = http
        self._upstream = upstream
        self._model = upstream.model or name
        self.servers = servers
        self._headers: dict[str, str] = {}
        self._key = ""
        self._timeout = httpx.Timeout(upstream.read_timeout, connect=upstream.connect_timeout)

    async def open(self) -> None:
        """Read the key, and find a server that answers. Raises Refused if none does."""
        if (path := self._upstream.key_file) is not None:
            try:
                key = await asyncio.to_thread(_read_key, path)
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "it is no text"
                raise _not_loaded(f"upstream.key_file cannot be read: {why}.") from error
            if not (key and key.isascii() and key.isprintable()):
                raise _not_loaded("upstream.key_file must hold one line: the key.")
            self._key = key
            self._headers["authorization"] = f"Bearer {key}"
        whys = await asyncio.gather(*(self.probe(each) for each in self.servers.all))
        for server, why in zip(self.servers.all, whys, strict=True):
            if why:  # clients are told the reason, and the log alone the address
                log.warning("an upstream server failed", server=server.url, reason=why)
        if all(whys):
            raise _not_loaded(f"No server that this model stands for can be used: {whys[0]}.")

    async def probe(self, server: Server) -> str | None:
        """Ask a server for its models; return what is wrong with it, if something is."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                url = f"{server.url}/models"
                async with self._http.stream("GET", url, headers=self._headers) as answer:
                    pass  # its status tells enough, and what it says has no end that is known
        except (httpx.HTTPError, TimeoutError) as error:
            return self._fails(server, f"it does not answer ({type(error).__name__})")
        if answer.status_code in (401, 403):
            return self._fails(server, "it refuses the key in upstream.key_file")
        if answer.status_code >= 500:
            return self._fails(server, f"it answers with status {answer.status_code}")
        self.servers.answered(server)
        return None

    async def run(self, job: TextJob, reader: AnswerReader, tell: Tell) -> TextDone:
        """Have a text made by one of the servers; ``tell`` gets its events as they come.

        Raises Refused. A request goes to another server only if the first one did not take it.
        """

        async def read(answer: httpx.Response) -> TextDone:
            return await self._read(answer, reader, tell)

        if reads_files(job):
            path, body = await asyncio.to_thread(_encoded_text, job, self._model)
        else:
            path, body = _encoded_text(job, self._model)
        return await self._ask(self.servers.order(job), path, body, job.trace, read)

    async def embed(self, job: EmbeddingJob) -> EmbeddingDone:
        """Have vectors or scores made by one of the servers; raises as ``run`` does."""

        async def read(answer: httpx.Response) -> EmbeddingDone:
            return await asyncio.to_thread(embedding_done, job, await _whole(answer))

        path, body = embedding_request(job, self._model)
        return await self._ask(self.servers.order(), path, encoded(body), job.trace, read)

    async def transcribe(self, job: TranscriptionJob) -> TranscriptionDone:
        """Have a sound transcribed by one of the servers; raises as ``run`` does."""

        async def read(answer: httpx.Response) -> TranscriptionDone:
            return await asyncio.to_thread(transcript_done, job, await _whole(answer))

        path = transcript_path(job)
        form = Form(transcript_fields(job, self._model), Path(job.path))
        return await self._ask(self.servers.order(), path, form, job.trace, read)

    async def speak(self, job: SpeechJob, tell: Tell) -> SpeechDone:
        """Have a text spoken by one of the servers, into the job's file; raises as ``run`` does."""

        async def read(answer: httpx.Response) -> SpeechDone:
            media_type = answer.headers.get("content-type", "")
            return await speech_done(job, media_type, answer.aiter_raw(), tell)

        path, body = speech_request(job, self._model)
        return await self._ask(self.servers.order(), path, encoded(body), job.trace, read)

    async def draw(self, job: ImageJob) -> ImageDone:
        """Have pictures made by one of the servers, into files; raises as ``run`` does."""

        async def read(answer: httpx.Response) -> ImageDone:
            return await asyncio.to_thread(image_done, job, await _whole(answer, most_bytes(job)))

        path, body = image_request(job, self._model)
        return await self._ask(self.servers.order(), path, encoded(body), job.trace, read)

    async def _ask(
        self,
        order: Sequence[Server],
        path: str,
        body: bytes | Form,
        trace: str | None,
        read: Callable[[httpx.Response], Awaitable[T]],
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
            except (httpx.HTTPError, BadAnswer) as error:
                self._note_failure(server, error)
                reason = str(error) if isinstance(error, BadAnswer) else type(error).__name__
                text = f"The server that this model stands for broke off: {reason}"
                raise Refused("WORKER_CRASHED", text) from error
            finally:
                server.running -= 1
        raise last

    def _note_failure(self, server: Server, error: BaseException | None) -> None:
        if server.is_well:
            log.warning("an upstream server failed", server=server.url, error=type(error).__name__)
        answered = isinstance(error, Refused | BadAnswer)
        away = f"it did not answer ({type(error).__name__})"
        self._fails(server, "it answered with an error" if answered else away)

    def _fails(self, server: Server, reason: str) -> str:
        self.servers.failed(server, reason)
        return reason

    @contextlib.asynccontextmanager
    async def _answer(
        self, server: Server, path: str, body: bytes | Form, headers: dict[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; raises NothingSent, or Refused for an answer that is an error."""
        if isinstance(body, Form):
            length = str(await body.length())
            headers = headers | {"content-type": body.content_type, "content-length": length}
            content: bytes | AsyncIterator[bytes] = body.parts()
        else:
            headers, content = headers | {"content-type": "application/json"}, body
        url, timeout = f"{server.url}/{path}", self._timeout
        request = self._http.build_request(
            "POST", url, content=content, headers=headers, timeout=timeout
        )
        try:
            answer = await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NothingSent from error
        try:
            if answer.status_code != 200:
                message = self._tellable(await _error_of(answer))
                refused = _refused(answer.status_code, message)
                if answer.status_code in _ELSEWHERE:
                    raise NothingSent from refused
                raise refused
            self.servers.answered(server)
            yield answer
        finally:
            await answer.aclose()

    async def _read(self, answer: httpx.Response, reader: AnswerReader, tell: Tell) -> TextDone:
        async for data in _events(answer):
            chunk = _chunk(data)
            if isinstance(chunk, dict) and chunk.get("error"):
                message = self._tellable(_message(chunk))
                raise Refused("INFERENCE_FAILED", message or "The server gave no reason.")
            if events := reader.take(chunk):
                await tell(events)
        return reader.done()

    def _tellable(self, message: str) -> str:
        """Return what a server says as a client may read it: without our key, and as text."""
        if self._key:
            message = message.replace(self._key, "***")
        return message.encode(errors="replace").decode()


async def _whole(answer: httpx.Response, most: int = _MOST_ANSWER) -> bytes:
    """Read an answer that is one JSON object. Raises BadAnswer for more than we take."""
    data = bytearray()
    async for part in answer.aiter_raw():
        data += part
        if len(data) > most:
            raise BadAnswer("its answer is too long.")
    return bytes(data)


def _encoded_text(job: TextJob, model: str) -> tuple[str, bytes]:
    path, body = request_of(job, model)
    return path, encoded(body)


def _chunk(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadAnswer("an event of its answer is no JSON.") from error


async def _events(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the data of each server-sent event until the last. Raises BadAnswer."""
    rest, parts = bytearray(), answer.aiter_raw()
    async for part in parts:
        rest += part
        if len(rest) > _MOST_LINE:
            raise BadAnswer("an event of its answer is too long.")
        if b"\n" not in part:
            continue  # so that a long line is not copied for each of its parts
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = bytes(line[5:].strip())
                if data == b"[DONE]":
                    await _skip(parts)
                    return
                yield data


async def _skip(parts: AsyncIterator[bytes]) -> None:
    """Read the end of an answer: only then is its connection kept for the next request."""
    with contextlib.suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            async for _ in parts:
                pass


async def _error_of(answer: httpx.Response) -> str:
    data = bytearray()
    async for part in answer.aiter_raw():
        data += part
        if len(data) > _MOST_ERROR:
            break
    try:
        return _message(json.loads(bytes(data)))
    except (ValueError, RecursionError):
        return ""


def _read_key(path: str) -> str:
    return Path(path).expanduser().read_text().strip()


def _message(body: Any) -> str:
    """Return what an error says, in OpenAI's form or in others'."""
    error = body.get("error") if isinstance(body, dict) else None
    told = error.get("message") if isinstance(error, dict) else error
    return told if isinstance(told, str) else ""


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
