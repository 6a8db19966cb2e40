"""The broadcast: what one gateway tells, the others hear; a gap ends with a reload."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bitinglip.redis.broadcast import Broadcast
from bitinglip.redis.link import RedisLink
from bitinglip.redis.messages import Missed, RowsChanged
from bitinglip.redis.remote import RedisBroadcast
from bitinglip.settings.redis import Redis as RedisSettings
from bitinglip.telemetry.health import Health
from tests.support.redis import RedisServer
from tests.support.wait import until


class Hearer:
    """Notes what it is told; fails as often as ``failing`` says."""

    def __init__(self, failing: int = 0) -> None:
        self.heard: list[object] = []
        self.reloads = 0
        self.failing = failing

    async def hear(self, message: object) -> None:
        if self.failing:
            self.failing -= 1
            raise OSError("no database")
        self.heard.append(message)

    async def reload(self) -> None:
        self.reloads += 1


@asynccontextmanager
async def gateway(redis: RedisServer) -> AsyncIterator[RedisBroadcast]:
    link = await RedisLink.opened(RedisSettings(url=redis.url, timeout_ms=2000), Health())
    broadcast = RedisBroadcast(link)
    try:
        yield broadcast
    finally:
        await broadcast.close()
        await link.close()


def test_broadcast_reaches_others_by_kind_and_not_its_sender(redis: RedisServer) -> None:
    async def run() -> None:
        async with gateway(redis) as one, gateway(redis) as two:
            own, rows, others = Hearer(), Hearer(), Hearer()
            one.subscribe(RowsChanged, own.hear, own.reload)
            two.subscribe(Missed, others.hear, others.reload)
            two.subscribe(RowsChanged, rows.hear, rows.reload)
            await until(lambda: own.reloads and rows.reloads and others.reloads)
            one.publish(RowsChanged())
            await until(lambda: rows.heard)
            assert (rows.heard, others.heard) == ([RowsChanged()], [])
            two.publish(RowsChanged())
            await until(lambda: own.heard)
            assert own.heard == [RowsChanged()]

    asyncio.run(run())


def test_broadcast_has_subscribers_reload_after_redis_was_away(redis: RedisServer) -> None:
    async def run() -> None:
        async with gateway(redis) as one, gateway(redis) as two:
            hearer = Hearer()
            two.subscribe(RowsChanged, hearer.hear, hearer.reload)
            await until(lambda: hearer.reloads)
            redis.kill()
            one.publish(RowsChanged())
            redis.start()
            before = hearer.reloads
            await until(lambda: hearer.reloads > before)

    asyncio.run(run())


def test_broadcast_tells_of_what_it_could_not_tell(redis: RedisServer) -> None:
    """One gateway was cut off from Redis, and the other was not: it reloads all the same."""

    async def run() -> None:
        async with gateway(redis) as one, gateway(redis) as two:
            hearer = Hearer()
            two.subscribe(RowsChanged, hearer.hear, hearer.reload)
            await until(lambda: hearer.reloads)
            before = hearer.reloads
            one._link.lost("it is cut off")
            one.publish(RowsChanged())
            await until(lambda: hearer.reloads > before)
            assert hearer.heard == []

    asyncio.run(run())


def test_broadcast_makes_a_failed_handler_good_by_a_reload(redis: RedisServer) -> None:
    async def run() -> None:
        async with gateway(redis) as one, gateway(redis) as two:
            hearer = Hearer(failing=1)
            two.subscribe(RowsChanged, hearer.hear, hearer.reload)
            await until(lambda: hearer.reloads)
            before = hearer.reloads
            one.publish(RowsChanged())
            await until(lambda: hearer.reloads > before)
            one.publish(RowsChanged())
            await until(lambda: hearer.heard == [RowsChanged()])

    asyncio.run(run())


def test_broadcast_takes_what_it_does_not_understand_for_nothing(redis: RedisServer) -> None:
    async def run() -> None:
        async with gateway(redis) as one, gateway(redis) as two:
            hearer = Hearer()
            two.subscribe(RowsChanged, hearer.hear, hearer.reload)
            await until(lambda: hearer.reloads)
            nested = b"\x93\xa1x\x81\xa4type\xa4rows" + b"\x91" * 100_000
            broken = b"\x92\xa1\xff\x81\xa4type\xa4rows"
            gaps = two.gaps
            for letter in (b"", b"\xc1", b"\x92\xa1x\x81\xa4type\xa3new", nested, broken):
                await one._link.command("PUBLISH", "bitinglip:broadcast", letter)
            one.publish(RowsChanged())
            await until(lambda: hearer.heard == [RowsChanged()])
            assert two.gaps == gaps  # it went on to listen

    asyncio.run(run())


def test_broadcast_alone_tells_nothing() -> None:
    hearer = Hearer()
    alone = Broadcast()
    alone.subscribe(RowsChanged, hearer.hear, hearer.reload)
    alone.publish(Missed())
    assert not hearer.heard
