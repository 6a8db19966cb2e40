"""Servers that models stand for and that go on for ever, or answer what none does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress

import pytest

from bitinglip.settings.upstream import Upstream
from bitinglip.upstreams.answer import AnswerReader
from bitinglip.upstreams.answer_memory import AnswerMemory
from bitinglip.upstreams.client import UpstreamClient
from bitinglip.upstreams.http import open_http
from bitinglip.upstreams.servers import Servers
from workers.engines.base import Refused
from workers.protocol import ChatMessage, Sampling, TextJob

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
ANSWER = (
    b'data: {"choices": [{"index": 0, "delta": {"content": "so"}, "finish_reason": "stop"}]}\n\n'
    b"data: [DONE]\n\n"
)
MOVED = b"HTTP/1.1 307 No\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n"
JOB = TextJob(id="j", messages=(ChatMessage("user", "a"),), sampling=Sampling(max_tokens=1))


@asynccontextmanager
async def upstream(*starts: tuple[bytes, bytes]) -> AsyncIterator[UpstreamClient]:
    """Provide a client of servers that send a start, and then the same for ever, if anything."""

    def serving(begin: bytes, rest: bytes) -> Callable[..., Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError), closing(writer):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(begin)
                while rest:
                    writer.write(rest)
                    await writer.drain()
                    await asyncio.sleep(0)
                await reader.read()

        return serve

    servers = [
        await asyncio.start_server(serving(begin, rest), "127.0.0.1", 0) for begin, rest in starts
    ]
    urls = [f"http://127.0.0.1:{each.sockets[0].getsockname()[1]}/v1" for each in servers]
    settings = Upstream(url=urls, read_timeout=30)
    async with open_http() as http:
        yield UpstreamClient(http, AnswerMemory(), settings, "m", Servers(urls, "round_robin"))
    for each in servers:
        each.close()


async def asked(client: UpstreamClient) -> str:
    """Return the text of an answer, or what the job is refused with."""

    async def tell(_: object) -> None:
        pass

    try:
        async with asyncio.timeout(60):
            done = await client.run(JOB, AnswerReader(JOB), tell)
    except Refused as error:
        return error.message
    return done.choices[0].text


@pytest.mark.parametrize(
    ("begin", "rest", "words"),
    [
        (STREAM + b"\r\n", b'data: {"choices": []}\n\n' * 4000, "longer than any"),
        (STREAM + b"\r\n", b": still here\n" * 40_000, "longer than any"),
        (STREAM + b"\r\n", b"a" * 60_000, "too long"),
        (STREAM + b"transfer-encoding: chunked\r\n\r\n", b"40\r\n%b\r\n" % (b"a" * 64), "too long"),
        (STREAM + b"x-a: ", b"a" * 60_000, "another protocol"),
        (STREAM, b"".join(b"x-%d: a\r\n" % n for n in range(1000)), "another protocol"),
        (STREAM + b"content-length: 99999999999999999999\r\n\r\n", b"", "another protocol"),
        (MOVED, b"", "307"),
        (b"HTTP/1.1 101 No\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", b"", "101"),
        (STREAM + b"\r\n" + ANSWER, b": more\n" * 1000, "so"),
    ],
    ids=[
        "empty events", "comments", "a line", "small chunks", "a header", "headers", "a length",
        "a redirection", "an upgrade", "after the end",
    ],
)  # fmt: skip
def test_upstream_that_goes_on_for_ever_is_ended(
    monkeypatch: pytest.MonkeyPatch, begin: bytes, rest: bytes, words: str
) -> None:
    monkeypatch.setattr("bitinglip.upstreams.answer._MOST_PIECES", 1000)
    monkeypatch.setattr("bitinglip.upstreams.answer._MOST_TEXT", 1 << 20)

    async def run() -> None:
        async with upstream((begin, rest)) as client:
            assert words in await asked(client)

    asyncio.run(run())


def test_upstream_whose_error_does_not_end_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitinglip.upstreams.http._ERROR_SECONDS", 0.1)
    busy = b"HTTP/1.1 503 Busy\r\ncontent-length: 1000\r\n\r\n{"

    async def run() -> None:
        async with upstream((busy, b""), (STREAM + b"\r\n" + ANSWER, b"")) as client:
            assert await asked(client) == "so"

    asyncio.run(run())


def test_probe_says_that_redirections_are_not_followed() -> None:
    async def run() -> None:
        async with upstream((MOVED, b"")) as client:
            with pytest.raises(Refused, match="redirects"):
                await client.open()

    asyncio.run(run())
