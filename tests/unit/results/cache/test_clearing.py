"""Clearing the cache of several gateways: each way by which the others are told."""

import asyncio
from pathlib import Path

from bitinglip.db.database import Database
from bitinglip.gateways.membership import Membership
from bitinglip.redis.broadcast import Broadcast
from bitinglip.redis.link import RedisLink
from bitinglip.redis.remote import RedisBroadcast
from bitinglip.results.cache.clearing import Clearing
from bitinglip.settings.gateways import Gateways
from bitinglip.settings.redis import Redis as RedisSettings
from bitinglip.telemetry.health import Health
from tests.support.redis import RedisServer
from tests.support.wait import until


def test_clearing_is_told_through_redis_where_gateways_share_no_database(
    redis: RedisServer, tmp_path: Path
) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "db")
        links = [await RedisLink.opened(RedisSettings(url=redis.url), Health()) for _ in range(2)]
        broadcasts = [RedisBroadcast(link) for link in links]
        cleared = [0, 0]

        def clear(index: int) -> None:
            cleared[index] += 1

        one, two = (Clearing(db, None, each) for each in broadcasts)
        one.hear(lambda: clear(0))
        two.hear(lambda: clear(1))
        await until(lambda: cleared == [1, 1])  # they may have missed what was told before
        await one.tell()
        await until(lambda: cleared == [1, 2])
        for broadcast, link in zip(broadcasts, links, strict=True):
            await broadcast.close()
            await link.close()
        await db.close()

    asyncio.run(run())


def test_clearing_is_counted_in_a_shared_database_and_not_taken_for_another_s(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "db")
        places = [Membership(db, name, Gateways(), Health()) for name in ("one", "two")]
        cleared = [0, 0]

        def clear(index: int) -> None:
            cleared[index] += 1

        one, two = (Clearing(db, each, Broadcast()) for each in places)
        one.hear(lambda: clear(0))
        two.hear(lambda: clear(1))

        async def look() -> list[int]:
            cleared[:] = [0, 0]
            for each in places:
                await each.poll()
            return list(cleared)

        for each in places:
            await each.join()
        await look()
        assert await look() == [0, 0]
        await one.tell()
        assert await look() == [0, 1]
        await one.tell()
        await two.tell()
        assert await look() == [1, 1]
        assert await look() == [0, 0]
        await db.close()

    asyncio.run(run())
