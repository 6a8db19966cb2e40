"""A proxy that breaks connections at points that chance chooses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

_PIECE = 1 << 16


class CuttingProxy:
    """Passes bytes on to a socket; while it ``cuts``, it breaks off within some of the pieces.

    A connection is whole until ``mark`` has passed: else none might ever be opened.
    """

    def __init__(self, target: Path, mark: bytes, chance: Random, part: float) -> None:
        """``part`` of the pieces of each direction are not passed on, or not to their end."""
        self.cuts = False
        self.breaks = 0
        self.loses = 0  #: answers that are still to be lost, each with its connection
        self._target = target
        self._mark = mark
        self._chance = chance
        self._part = part

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_unix_connection(str(self._target))
        except OSError:
            writer.close()
            return
        used = asyncio.Event()
        ways = [
            asyncio.create_task(self._pass(reader, back, used)),
            asyncio.create_task(self._pass(there, writer, used)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ways:
                each.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for side in (back, writer):  # what was passed on arrives
                side.close()

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, used: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(_PIECE):
                if self._mark in piece:
                    used.set()
                if self.loses and used.is_set() and self._mark not in piece:
                    self.loses -= 1
                    return
                is_cut = self.cuts and used.is_set() and self._chance.random() < self._part
                if is_cut:
                    piece = piece[: self._chance.randrange(len(piece) + 1)]
                sink.write(piece)
                await sink.drain()
                if is_cut:
                    self.breaks += 1
                    return


@asynccontextmanager
async def cutting_proxy(
    path: Path, target: Path, mark: bytes, seed: int, part: float
) -> AsyncIterator[CuttingProxy]:
    """Listen on the socket ``path`` for as long as it is open."""
    proxy = CuttingProxy(target, mark, Random(seed), part)
    server = await asyncio.start_unix_server(proxy.serve, path)
    try:
        yield proxy
    finally:
        server.close()
