"""The stand-in for a worker, whose servers do what they like."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bitinglip.settings.upstream import Upstream
from bitinglip.upstreams.answer_memory import AnswerMemory
from bitinglip.upstreams.client import UpstreamClient
from bitinglip.upstreams.servers import Servers
from bitinglip.upstreams.worker import UpstreamWorker
from workers.framing import FrameReader, encode_commands
from workers.protocol import (
    Cancel,
    Cancelled,
    Command,
    Event,
    Load,
    LoadFailed,
    Sampling,
    TextDelta,
    TextDone,
    TextJob,
)

URL = "http://upstream/v1"
PIECE = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % (b"a" * 1000)
LAST = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
JOB = TextJob(id="j", prompt="p", sampling=Sampling(max_tokens=9))
LOAD = Load(model="m", engine="upstream", path="", device="cpu")


def stand_in(http: httpx.AsyncClient, upstream: Upstream) -> UpstreamWorker:
    return UpstreamWorker(
        UpstreamClient(http, AnswerMemory(), upstream, "m", Servers([URL], "least_work"))
    )


def told(worker: UpstreamWorker, reader: FrameReader) -> list[Event]:
    try:
        return reader.feed(os.read(worker.events_fd, 1 << 16))
    except BlockingIOError:
        return []


async def until(worker: UpstreamWorker, last: type[Event]) -> list[Event]:
    """Return all that it says up to an event of a type."""
    events, reader = list[Event](), FrameReader()
    async with asyncio.timeout(10):
        while not any(isinstance(each, last) for each in events):
            events += told(worker, reader)
            await asyncio.sleep(0)
    return events


def send(worker: UpstreamWorker, *commands: Command) -> None:
    worker.send(encode_commands(commands))


async def ended(worker: UpstreamWorker) -> None:
    worker.kill()
    await asyncio.sleep(0)
    worker.close()


def test_cancelling_a_job_that_has_not_begun_ends_it() -> None:
    async def check() -> None:
        async with httpx.AsyncClient() as http:
            worker = stand_in(http, Upstream(url=[URL]))
            send(worker, JOB, Cancel("j"))
            assert (await until(worker, Cancelled))[1:] == [Cancelled(id="j")]
            await ended(worker)

    asyncio.run(check())


def test_answer_is_not_read_on_while_its_events_are_not_taken() -> None:
    async def check() -> None:
        sent = 0

        async def flood() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(2000):
                sent += 1
                yield PIECE
            yield LAST

        def answer(_request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, content=flood())

        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            worker = stand_in(http, Upstream(url=[URL]))
            send(worker, JOB)
            for _ in range(5000):
                await asyncio.sleep(0)
            assert 0 < sent < 1000
            events = await until(worker, TextDone)
            assert sum(isinstance(each, TextDelta) for each in events) == 2000
            await ended(worker)

    asyncio.run(check())


def test_commands_after_the_end_begin_nothing() -> None:
    async def check() -> None:
        asked: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return httpx.Response(200, content=LAST)

        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            worker = stand_in(http, Upstream(url=[URL]))
            worker.kill()
            send(worker, JOB)
            for _ in range(100):
                await asyncio.sleep(0)
            assert not asked
            worker.close()

    asyncio.run(check())


@pytest.mark.parametrize("key", ["schl\u00fcssel", "two\nlines", "nul\0"])
def test_key_that_no_header_can_hold_is_refused(tmp_path: Path, key: str) -> None:
    async def check() -> None:
        (tmp_path / "key").touch(0o600)
        (tmp_path / "key").write_text(key)
        async with httpx.AsyncClient() as http:
            worker = stand_in(http, Upstream(url=[URL], key_file=str(tmp_path / "key")))
            send(worker, LOAD)
            *_, failed = await until(worker, LoadFailed)
            assert isinstance(failed, LoadFailed)
            assert "key_file" in failed.message
            await ended(worker)

    asyncio.run(check())


def test_address_that_cannot_be_asked_fails_the_load() -> None:
    async def check() -> None:
        async with httpx.AsyncClient() as http:
            servers = Servers(["http://upstream:99999/v1"], "least_work")
            worker = UpstreamWorker(
                UpstreamClient(http, AnswerMemory(), Upstream(url=[URL]), "m", servers)
            )
            send(worker, LOAD)
            assert isinstance((await until(worker, LoadFailed))[-1], LoadFailed)
            await ended(worker)

    asyncio.run(check())
