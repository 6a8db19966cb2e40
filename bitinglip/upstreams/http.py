"""Sends requests to other servers and reads their answers, within bounds of size and time."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any, Protocol

import aiohttp
import certifi
from aiohttp.connector import AddrInfoType

from bitinglip import __version__
from bitinglip.upstreams.answer import BadAnswer

#: what is unpacked cannot be bounded before it is there
_HEADERS = {"accept-encoding": "identity", "user-agent": f"bitinglip/{__version__}"}
_IDLE_SECONDS = 30.0  #: for which a connection that nothing uses is kept
_UNTAKEN_MS = 120_000  #: milliseconds for which a server may take nothing of what was sent
_MOST_LINE = 1 << 20  #: bytes of one event of an answer
_MOST_ERROR = 64 << 10  #: bytes that are read of an error
_ERROR_SECONDS = 5.0  #: for which an error is read: the job may go to another server
_DONE = b"[DONE]"  #: the data of the last event
_TURN = 128  #: events of an answer, after which others on the event loop have theirs
_END_SECONDS = 0.5  #: for the end of an answer after its last event


def open_http() -> aiohttp.ClientSession:
    """Return what all models' requests go through; it keeps nothing that servers set.

    It has no bound of its own: each model runs as many requests at once as it has slots.
    """
    trust = ssl.create_default_context()  # the system's authorities, and SSL_CERT_FILE
    trust.load_verify_locations(certifi.where())
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, ssl=trust, keepalive_timeout=_IDLE_SECONDS, socket_factory=_socket
        ),
        headers=_HEADERS,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


def _socket(address: AddrInfoType) -> socket.socket:
    """Make a socket that ends when the other side takes nothing more.

    A connection that is closed while it holds unsent bytes would else last as long as that side.
    """
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNTAKEN_MS)
    return made


class NothingSent(Exception):
    """A server did not take the request: another one may be asked."""


class Body(Protocol):
    """Is the body of one request, which is made as it is sent; each reading begins anew."""

    content_type: str

    async def length(self) -> int:
        """Return how many bytes it has. Raises OSError."""
        ...

    def parts(self) -> AsyncIterator[bytes | memoryview]:
        """Yield it in parts that are small beside what the event loop has time for.

        Raises OSError.
        """
        ...


async def send(
    http: aiohttp.ClientSession,
    url: str,
    body: Body,
    headers: dict[str, str],
    limits: aiohttp.ClientTimeout,
) -> aiohttp.ClientResponse:
    """Send a request, and return its answer once that begins.

    Raises NothingSent, ``aiohttp.ClientError``, and TimeoutError for a server that takes
    nothing of it, or says nothing to it, for as long as one may be silent.
    """
    patience = limits.sock_read or 0.0
    async with asyncio.timeout(None) as silence:
        length = str(await body.length())
        headers = headers | {"content-type": body.content_type, "content-length": length}
        content = _within(body.parts(), silence, patience)
        try:
            return await http.post(
                url, data=content, headers=headers, timeout=limits, allow_redirects=False
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NothingSent from error


async def _within(
    parts: AsyncIterator[bytes | memoryview], silence: asyncio.Timeout, patience: float
) -> AsyncIterator[bytes | memoryview]:
    """Yield the parts of a body; each that was taken is a sign of life."""
    async for part in parts:
        with contextlib.suppress(RuntimeError):  # its answer has begun, before the body was read
            _expect(silence, patience)
        yield part


async def event_data(answer: aiohttp.ClientResponse, most: int) -> AsyncIterator[list[bytes]]:
    """Yield the data of server-sent events until the last, some of those that came together.

    Raises BadAnswer, also for an answer of more than ``most`` bytes: comments are some, too.
    """
    rest, size = bytearray(), 0
    async for part in answer.content.iter_any():
        rest += part
        size += len(part)
        if size > most:
            raise BadAnswer("its answer is longer than any that was asked for.")
        if len(rest) > _MOST_LINE:
            raise BadAnswer("an event of its answer is too long.")
        if b"\n" not in part:
            continue  # so that a long line is not copied for each of its parts
        *lines, rest = rest.split(b"\n")
        found = [bytes(line[5:].strip()) for line in lines if line.startswith(b"data:")]
        is_last = _DONE in found
        if is_last:
            del found[found.index(_DONE) :]
        for at in range(0, len(found), _TURN):
            if at:
                await asyncio.sleep(0)
            yield found[at : at + _TURN]
        if is_last:
            await _skip(answer)
            return


async def _skip(answer: aiohttp.ClientResponse) -> None:
    """Read the end of an answer: only then is its connection kept for the next request."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            async for _ in answer.content.iter_any():
                pass


def _expect(silence: asyncio.Timeout, seconds: float) -> None:
    """Let a server be silent for so long from now on."""
    silence.reschedule(asyncio.get_running_loop().time() + seconds)


async def error_of(answer: aiohttp.ClientResponse) -> str:
    """Return the message of an answer that is an error; it may be empty.

    Raises ``aiohttp.ClientError``.
    """
    data = bytearray()
    with contextlib.suppress(TimeoutError):  # its status says enough
        async with asyncio.timeout(_ERROR_SECONDS):
            async for part in answer.content.iter_any():
                data += part
                if len(data) > _MOST_ERROR:
                    break
    try:
        return message_of(json.loads(bytes(data)))
    except (ValueError, RecursionError):
        return ""


def reason_of(error: BaseException | None) -> str:
    """Return what clients may read of a failure: no address, and no file."""
    match error:
        case BadAnswer():
            return str(error)
        case aiohttp.ClientSSLError():
            return "TLS failed, or its certificate is not trusted."
        case aiohttp.ClientConnectorDNSError():
            return "its name is not known."
        case aiohttp.ClientConnectorError():
            return "there is no connection to it."
        case TimeoutError():
            return "it was silent for too long."
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | OSError():
            return "it closed the connection."
        case _:
            return f"it answered with another protocol ({type(error).__name__})."


def message_of(body: Any) -> str:
    """Return what an error says, in OpenAI's form or in others'."""
    error = body.get("error") if isinstance(body, dict) else None
    told = error.get("message") if isinstance(error, dict) else error
    return told if isinstance(told, str) else ""


def is_clients(body: dict[str, Any]) -> bool:
    """Return whether an error is by what the client asked for, in OpenAI's form.

    So is a text that is not of the form that was asked for, which is known at its end.
    """
    error = body.get("error")
    return isinstance(error, dict) and error.get("type") == "invalid_request_error"
