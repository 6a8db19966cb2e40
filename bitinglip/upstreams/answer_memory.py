"""Bounds the memory of answers that are read as a whole, over all models of other servers.

An answer that is not small waits until there is room for it, while its server keeps the rest; it
holds nothing meanwhile, so no two wait for each other. One that is alone is taken whatever its
size, up to what its job may have.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import aiohttp

from bitinglip.upstreams.answer import BadAnswer

T = TypeVar("T")

MOST_ANSWER = 64 << 20  #: bytes of an answer whose job does not say
_MOST = 256 << 20  #: bytes of all answers, and of what is made of them
_SMALL = 1 << 20  #: bytes up to which an answer is not counted: each model has few at once
#: seconds that an answer may hold room before it is whole, and bytes of it for each more second
_PATIENCE, _LEAST_RATE = 60.0, 1 << 20
_COPIES = 3  #: an answer is there as it came, as it is decoded, and in part as it is checked


class AnswerMemory:
    """Counts bytes from the beginning of an answer until nothing of it is in memory any more."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.bytes = 0

    async def read(
        self, answer: aiohttp.ClientResponse, most: int, decode: Callable[[bytearray], T]
    ) -> T:
        """Read an answer of at most so many bytes, and return what ``decode``, in a thread, makes.

        Raises BadAnswer for a longer one, and for one that comes so slowly that others would wait
        for it for long; and what ``decode`` raises.
        """
        held, data, work = 0, bytearray(), None
        loop, patience = asyncio.get_running_loop(), asyncio.timeout(None)
        try:
            async with patience:
                async for part in answer.content.iter_any():
                    data += part
                    if len(data) > most:
                        raise BadAnswer("its answer is too long.")
                    if len(data) > _SMALL and not held:
                        length = _length(answer, most)
                        await self._take(_COPIES * length)
                        held = _COPIES * length
                        patience.reschedule(loop.time() + _PATIENCE + length / _LEAST_RATE)
            work = loop.run_in_executor(None, decode, data)
            return await asyncio.shield(work)
        except TimeoutError as error:
            if not patience.expired():
                raise
            raise BadAnswer("its answer comes too slowly.") from error
        finally:
            if work is None or work.done():
                self._give(held)
            else:  # its job was cancelled; the thread goes on

                def end(done: "asyncio.Future[T]") -> None:
                    done.exception()  # nobody asks for it any more
                    self._give(held)

                work.add_done_callback(end)

    async def _take(self, size: int) -> None:
        if not self._waiting and self._fits(size):
            self.bytes += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was its turn just now
                self._give(size)
            else:
                self._waiting.remove((size, turn))
                self._next()
            raise

    def _give(self, size: int) -> None:
        self.bytes -= size
        self._next()

    def _next(self) -> None:
        """Let those go on that there is room for, in their order."""
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self.bytes += size
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return not self.bytes or self.bytes + size <= self._most


def _length(answer: aiohttp.ClientResponse, most: int) -> int:
    """Return how long an answer may be: as it says, since no more is read, else the most."""
    said = answer.headers.get("content-length", "")
    return min(int(said), most) if said.isascii() and said.isdecimal() else most
