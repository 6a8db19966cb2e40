"""The stand-in for a worker, whose servers do what they like."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from msgspec.structs import replace

from bitinglip.settings.upstream import Upstream
from bitinglip.upstreams.answer_memory import AnswerMemory
from bitinglip.upstreams.client import UpstreamClient
from bitinglip.upstreams.http import open_http
from bitinglip.upstreams.servers import Servers
from bitinglip.upstreams.worker import UpstreamWorker
from workers.framing import FrameReader, checked_frame
from workers.protocol import (
    Cancel,
    Cancelled,
    Command,
    Ends,
    Event,
    Failed,
    Job,
    Load,
    LoadFailed,
    Sampling,
    TextDelta,
    TextDone,
    TextJob,
    TranscriptionJob,
)

URL = "http://127.0.0.1:9/v1"  #: where nothing answers
PIECE = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % (b"a" * 10_000)
LAST = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
Answer = Callable[[asyncio.StreamWriter], Coroutine[None, None, None]]
JOB = TextJob(id="j", prompt="p", sampling=Sampling(max_tokens=9))
LOAD = Load(model="m", engine="upstream", path="", device="cpu")


def stand_in(http: aiohttp.ClientSession, upstream: Upstream) -> UpstreamWorker:
    servers = Servers(upstream.url, "least_work")
    return UpstreamWorker(UpstreamClient(http, AnswerMemory(), upstream, "m", servers))


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """Answer each connection's first request; yield the URL."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        await answer(writer)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1")
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def told(worker: UpstreamWorker, reader: FrameReader) -> list[Event]:
    try:
        return reader.feed(os.read(worker.events_fd, 1 << 16))
    except BlockingIOError:
        return []


async def until(worker: UpstreamWorker, last: type[Event]) -> list[Event]:
    """Return all that it says up to an event of a type."""
    events, reader = list[Event](), FrameReader()
    async with asyncio.timeout(30):
        while True:
            new = told(worker, reader)
            events += new
            if any(isinstance(each, last) for each in new):
                return events
            await asyncio.sleep(0)


def send(worker: UpstreamWorker, *commands: Command) -> None:
    worker.send(commands)


async def ended(worker: UpstreamWorker) -> None:
    worker.kill()
    await asyncio.sleep(0)
    worker.close()


def test_cancelling_a_job_that_has_not_begun_ends_it() -> None:
    async def check() -> None:
        async with open_http() as http:
            worker = stand_in(http, Upstream(url=[URL]))
            send(worker, JOB, Cancel("j"))
            assert (await until(worker, Cancelled))[1:] == [Cancelled(id="j")]
            await ended(worker)

    asyncio.run(check())


@pytest.mark.parametrize("leaves", [False, True])
def test_text_that_does_not_come_to_its_end_tells_what_it_has_cost(leaves: bool) -> None:
    """A client could have texts for nothing: with a schema that none is of, or leaving early."""
    late = b'data: {"error": {"message": "no form", "type": "invalid_request_error"}}\n\n'
    sampling = Sampling(max_tokens=2600)
    job = replace(JOB, prompt="word" * 100, stream=leaves, sampling=sampling)

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(PIECE if leaves else PIECE + late)
        await writer.drain()
        while leaves and not writer.is_closing():
            writer.write(b": here\n")
            await asyncio.sleep(0.01)

    async def check() -> None:
        async with serving(answer) as url, open_http() as http:
            worker = stand_in(http, Upstream(url=[url]))
            send(worker, job)
            if leaves:
                await until(worker, TextDelta)
                send(worker, Cancel("j"))
            final = (await until(worker, Cancelled if leaves else Failed))[-1]
            assert isinstance(final, Cancelled if leaves else Failed)
            assert (final.prompt_tokens, final.completion_tokens) == (100, 2500)
            assert isinstance(final, Cancelled) or final.code == "INVALID_REQUEST"
            await ended(worker)
            await asyncio.sleep(0.05)  # for the end of the connection

    asyncio.run(check())


def test_answer_is_not_read_on_while_its_events_are_not_taken() -> None:
    pieces, sent = 1200, 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        # What the system holds on the way is no more than this, and what it gives to a new reader.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        for _ in range(pieces):
            sent += 1
            writer.write(PIECE)
            await writer.drain()
        writer.write(LAST)

    async def check() -> None:
        async with serving(flood) as url, open_http() as http:
            worker = stand_in(http, Upstream(url=[url]))
            send(worker, replace(JOB, sampling=Sampling(max_tokens=1 << 16)))
            before = -1
            while not sent or sent != before:
                before = sent
                await asyncio.sleep(0.1)
            assert 0 < sent < pieces * 3 / 4, (
                "twelve megabytes, of which the system holds six at most"
            )
            events = await until(worker, TextDone)
            assert sum(isinstance(each, TextDelta) for each in events) == pieces
            await ended(worker)

    asyncio.run(check())


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("leaves", [False, True])
def test_long_answer_is_encoded_beside_the_event_loop_and_ends_once(
    monkeypatch: pytest.MonkeyPatch, long: bool, leaves: bool
) -> None:
    at, threads = asyncio.Event(), list[bool]()
    loops: list[asyncio.AbstractEventLoop] = []

    def noted(events: Sequence[Event]) -> bytes:
        if isinstance(events[0], TextDone):
            threads.append(threading.current_thread() is not threading.main_thread())
            loops[0].call_soon_threadsafe(at.set)
        return checked_frame(events)

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(PIECE * (7 if long else 1) + LAST)

    async def check() -> None:
        loops.append(asyncio.get_running_loop())
        async with serving(answer) as url, open_http() as http:
            worker = stand_in(http, Upstream(url=[url]))
            send(worker, replace(JOB, sampling=Sampling(max_tokens=99), stream=False))
            await at.wait()
            if leaves:
                send(worker, Cancel("j"))
            finals, reader = list[Event](), FrameReader()
            for _ in range(20):
                finals += [each for each in told(worker, reader) if isinstance(each, Ends)]
                await asyncio.sleep(0.01)
            assert len(finals) == 1, finals
            await ended(worker)

    monkeypatch.setattr("bitinglip.upstreams.worker.checked_frame", noted)
    asyncio.run(check())
    assert threads == [long]


def transcription(path: Path) -> TranscriptionJob:
    path.touch()
    os.truncate(path, 64 << 20)  # more than the system holds on the way
    return TranscriptionJob(id="j", path=str(path), max_seconds=60.0)


@pytest.mark.parametrize("job", [lambda _: JOB, lambda folder: transcription(folder / "sound")])
def test_server_that_is_silent_ends_the_job(job: Callable[[Path], Job], tmp_path: Path) -> None:
    async def check() -> None:
        async with open_http() as http:
            with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts no connection
                url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
                worker = stand_in(http, Upstream(url=[url], connect_timeout=0.2, read_timeout=0.2))
                send(worker, job(tmp_path))
                *_, failed = await until(worker, Failed)
            assert isinstance(failed, Failed)
            assert "silent for too long" in failed.message
            await ended(worker)
            await asyncio.sleep(0.02)  # for the end of the connection

    asyncio.run(check())


def test_commands_after_the_end_begin_nothing() -> None:
    asked = 0

    async def answer(_writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1

    async def check() -> None:
        async with serving(answer) as url, open_http() as http:
            worker = stand_in(http, Upstream(url=[url]))
            worker.kill()
            send(worker, JOB)
            await asyncio.sleep(0.05)
            assert not asked
            worker.close()

    asyncio.run(check())


@pytest.mark.parametrize("key", ["schl\u00fcssel", "two\nlines", "nul\0"])
def test_key_that_no_header_can_hold_is_refused(tmp_path: Path, key: str) -> None:
    async def check() -> None:
        (tmp_path / "key").touch(0o600)
        (tmp_path / "key").write_text(key)
        async with open_http() as http:
            worker = stand_in(http, Upstream(url=[URL], key_file=str(tmp_path / "key")))
            send(worker, LOAD)
            *_, failed = await until(worker, LoadFailed)
            assert isinstance(failed, LoadFailed)
            assert "key_file" in failed.message
            await ended(worker)

    asyncio.run(check())


def test_address_that_cannot_be_asked_fails_the_load() -> None:
    async def check() -> None:
        async with open_http() as http:
            servers = Servers(["http://upstream:99999/v1"], "least_work")
            worker = UpstreamWorker(
                UpstreamClient(http, AnswerMemory(), Upstream(url=[URL]), "m", servers)
            )
            send(worker, LOAD)
            assert isinstance((await until(worker, LoadFailed))[-1], LoadFailed)
            await ended(worker)

    asyncio.run(check())
