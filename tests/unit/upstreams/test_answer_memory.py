"""The memory of other servers' answers: bounded over all of them, and given back in each case."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bitinglip.upstreams.answer import BadAnswer
from bitinglip.upstreams.answer_memory import AnswerMemory
from bitinglip.upstreams.http import open_http
from tests.support.wait import until

SIZE = 2 << 20
COUNTED = 3 * SIZE


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with SIZE bytes, whose number is told or not; or with few."""
    asked = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
    size = 10 if asked == b"/small" else SIZE
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n")
    writer.write(b"\r\n" if asked == b"/untold" else b"content-length: %d\r\n\r\n" % size)
    try:
        for _ in range(0, size, 1 << 16):
            writer.write(b"a" * min(size, 1 << 16))
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except ConnectionError:
        pass  # the client has read enough
    finally:
        writer.transport.abort()


Ask = Callable[[str, Callable[[bytearray], int]], Coroutine[Any, Any, int]]


@asynccontextmanager
async def asking(memory: AnswerMemory, most: int = SIZE) -> AsyncIterator[Ask]:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with open_http() as http:

        async def ask(path: str, decode: Callable[[bytearray], int]) -> int:
            async with http.get(f"http://127.0.0.1:{port}/{path}") as answer:
                return await memory.read(answer, most, decode)

        yield ask
    server.close()


def test_answer_that_comes_slowly_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for it: a server could send a megabyte, and then a byte now and then."""
    monkeypatch.setattr("bitinglip.upstreams.answer_memory._PATIENCE", 0.1)
    monkeypatch.setattr("bitinglip.upstreams.answer_memory._LEAST_RATE", 1 << 30)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE)
        writer.write(b"a" * (SIZE * 3 // 4))
        while not writer.is_closing():
            writer.write(b"a")
            await asyncio.sleep(0.01)

    async def run() -> None:
        memory = AnswerMemory()
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        async with server, open_http() as http:
            port = server.sockets[0].getsockname()[1]
            async with http.get(f"http://127.0.0.1:{port}/") as answer:
                with pytest.raises(BadAnswer, match="slowly"):
                    await memory.read(answer, SIZE, len)
                assert memory.bytes == 0
            await asyncio.sleep(0.05)  # for the end of the connection

    asyncio.run(run())


class Decoding:
    """Decodes answers once it is told to, and notes how many are in memory."""

    def __init__(self, memory: AnswerMemory) -> None:
        self._memory = memory
        self.go = threading.Event()
        self.begun = 0
        self.most = 0

    def __call__(self, data: bytearray) -> int:
        self.begun += 1
        self.most = max(self.most, self._memory.bytes)
        assert self.go.wait(60)
        return len(data)


@pytest.mark.parametrize("path", ["told", "untold"])
def test_answers_wait_for_room_and_small_ones_do_not(path: str) -> None:
    async def run() -> None:
        memory = AnswerMemory(2 * COUNTED)
        decode = Decoding(memory)
        async with asking(memory) as ask:
            large = [asyncio.create_task(ask(path, decode)) for _ in range(5)]
            await until(lambda: decode.begun == 2)
            assert await ask("small", len) == 10
            assert decode.begun == 2, "the others wait"
            decode.go.set()
            assert await asyncio.gather(*large) == [SIZE] * 5
            assert (decode.most, memory.bytes) == (2 * COUNTED, 0)

    asyncio.run(run())


def test_answer_that_is_alone_is_taken_whatever_its_size_unless_its_job_may_not_have_it() -> None:
    async def run() -> None:
        memory = AnswerMemory(1)
        async with asking(memory) as ask:
            assert await ask("untold", len) == SIZE
        async with asking(memory, most=SIZE - 1) as ask:
            for path in ("told", "untold"):
                with pytest.raises(BadAnswer, match="too long"):
                    await ask(path, len)
        assert memory.bytes == 0

    asyncio.run(run())


def test_memory_of_a_cancelled_job_is_given_back_once_nothing_of_its_answer_is_left() -> None:
    async def run() -> None:
        memory = AnswerMemory(COUNTED)
        decode = Decoding(memory)
        async with asking(memory) as ask:
            first = asyncio.create_task(ask("told", decode))
            await until(lambda: decode.begun)
            second, third = (asyncio.create_task(ask("told", decode)) for _ in range(2))
            await asyncio.sleep(0.1)  # so that they wait; the test holds without that, too
            second.cancel()
            first.cancel()
            for each in (first, second):
                with pytest.raises(asyncio.CancelledError):
                    await each
            assert memory.bytes == COUNTED, "its thread is at work"
            decode.go.set()
            assert await third == SIZE
            assert memory.bytes == 0

    asyncio.run(run())


def test_answer_that_cannot_be_decoded_gives_its_memory_back() -> None:
    def refuse(_: bytearray) -> int:
        raise BadAnswer("no")

    async def run() -> None:
        memory = AnswerMemory()
        async with asking(memory) as ask:
            with pytest.raises(BadAnswer):
                await ask("told", refuse)
        assert memory.bytes == 0

    asyncio.run(run())
