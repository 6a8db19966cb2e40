"""Tests of frames between a gateway and an agent, over real connections."""

import asyncio

import pytest

from workers.nodes.link import AT_ONCE, Link, LinkLost
from workers.nodes.messages import Kind


@pytest.mark.anyio
async def test_a_connection_that_is_lost_within_a_long_frame_says_so_of_the_next_one_too() -> None:
    taken: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def take(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await taken.put(writer)

    server = await asyncio.start_server(take, "127.0.0.1", limit=1)
    async with server:
        port = server.sockets[0].getsockname()[1]
        link = Link(*await asyncio.open_connection("127.0.0.1", port))
        other_side = await taken.get()
        long = asyncio.create_task(link.send_long(Kind.COMMANDS, bytes(200 * AT_ONCE)))
        await asyncio.sleep(0)
        link.send(Kind.KILL)
        other_side.transport.abort()
        with pytest.raises(LinkLost):
            await long
        with pytest.raises(LinkLost):
            await link.send_long(Kind.COMMANDS, b"more")
        link.send(Kind.KILL)
        assert not link._behind  # nothing is kept for a connection that is gone
