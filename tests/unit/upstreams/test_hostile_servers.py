"""Servers that models stand for and that go on for ever, or answer what none does."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from typing import Any

import pytest

from bitinglip.settings.upstream import Upstream
from bitinglip.upstreams.answer import AnswerReader
from bitinglip.upstreams.answer_memory import AnswerMemory
from bitinglip.upstreams.client import Tell, UpstreamClient
from bitinglip.upstreams.http import open_http
from bitinglip.upstreams.servers import Servers
from workers.engines.base import Refused
from workers.protocol import ChatMessage, Event, Sampling, TextJob

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


async def nothing(_: list[Event]) -> None:
    pass


async def asked(client: UpstreamClient, tell: Tell = nothing) -> str:
    """Return the text of an answer, or what the job is refused with."""
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


def test_upstream_that_sends_very_much_at_once_leaves_others_their_turns() -> None:
    """Tens of thousands of choices or calls in one piece take a second to look at."""
    piece, told = b'data: {"choices": [{"delta": {"content": "a"}}]}\n', list[int]()
    choices = b'data: {"choices": [%s{}]}\n' % (b"{}," * 100_000)
    calls = b'data: {"choices": [{"delta": {"tool_calls": [%s{}]}}]}\n' % (b"{}," * 100_000)

    async def tell(events: list[Event]) -> None:
        told.append(len(events))

    async def run() -> None:
        async with upstream((STREAM + b"\r\n" + piece * 5000 + ANSWER, b"")) as client:
            assert (await asked(client, tell)).startswith("aaaa")
        for one, words in ((choices, "more choices"), (calls, "more tools")):
            async with upstream((STREAM + b"\r\n" + one, b"")) as client:
                assert words in await asked(client)

    asyncio.run(run())
    assert sum(told) == 5001
    assert max(told) <= 128


def test_upstream_s_long_event_is_decoded_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[bool] = []

    def noted(data: bytes) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return json.loads(data)

    monkeypatch.setattr("bitinglip.upstreams.client._chunk", noted)
    long = b'data: {"choices": [], "comment": "%s"}\n\n' % (b"a" * 100_000)

    async def run() -> None:
        async with upstream((STREAM + b"\r\n" + long + ANSWER, b"")) as client:
            assert await asked(client) == "so"

    asyncio.run(run())
    assert threads == [False, True]


def test_upstream_s_text_is_no_longer_than_its_tokens_can_be() -> None:
    piece = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % (b"a" * 30_000)

    async def run() -> None:
        async with upstream((STREAM + b"\r\n" + piece * 2 + ANSWER, b"")) as client:
            assert (await asked(client)).endswith("so")
        async with upstream((STREAM + b"\r\n" + piece * 5 + ANSWER, b"")) as client:
            assert "longer than any" in await asked(client)

    asyncio.run(run())


def test_upstream_s_errors_tell_no_address_of_it() -> None:
    async def run() -> None:
        async with upstream((STREAM + b"\r\n", b"")) as client:
            host = client.servers.all[0].url.split("/")[2]
        error = b'data: {"error": {"message": "http://%s/v1 at %s is lost"}}\n\n'
        told = error % (host.encode(), b"127.0.0.1")
        async with upstream((STREAM + b"\r\n" + told, b"")) as client:
            message = await asked(client)
            assert ("127.0.0.1" in message, "is lost" in message) == (False, True), message

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
