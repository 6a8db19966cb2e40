"""Answers in Redis: who may read them, how long and how many there are."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bitinglip.redis.link import RedisLink
from bitinglip.results.cache.entries import Answer
from bitinglip.results.cache.redis_answers import AnswersInRedis
from bitinglip.settings.redis import Redis as RedisSettings
from bitinglip.telemetry.health import Health
from tests.support.redis import RedisServer
from tests.support.wait import until

ANSWER = Answer(b"events" * 100, b"final", (b"a picture",))
SECRET, KEY = b"s" * 32, b"k" * 32


@dataclass
class Rig:
    """Opens the answers of gateways, whose time the test sets."""

    link: RedisLink
    now: float = 1_000_000.0
    made: list[AnswersInRedis] = field(default_factory=list)

    def gateway(self, secret: bytes = SECRET, **options: Any) -> AnswersInRedis:
        own = {"ttl": 60.0, "most": 10_000, **options}
        self.made.append(AnswersInRedis(self.link, secret, clock=lambda: self.now, **own))
        return self.made[-1]


@asynccontextmanager
async def opened(redis: RedisServer, *, timeout_ms: int = 5000) -> AsyncIterator[Rig]:
    redis.flush()
    link = await RedisLink.opened(RedisSettings(url=redis.url, timeout_ms=timeout_ms), Health())
    rig = Rig(link)
    try:
        yield rig
    finally:
        for each in rig.made:
            await each.close()
        await link.close()


def test_answer_is_another_gateway_s_with_the_same_secret_and_words(redis: RedisServer) -> None:
    async def run() -> None:
        async with opened(redis) as rig:
            await rig.gateway().put(KEY, ANSWER)
            assert await rig.gateway().get(KEY) == ANSWER
            assert await rig.gateway(b"t" * 32).get(KEY) is None
            assert await rig.gateway(words=lambda: b"others").get(KEY) is None
            assert await rig.gateway(version="of another").get(KEY) is None
            assert await rig.gateway().get(b"l" * 32) is None

    asyncio.run(run())


def test_answer_in_redis_is_encrypted_and_bound_to_its_name(redis: RedisServer) -> None:
    async def run() -> None:
        async with opened(redis) as rig:
            own = rig.gateway()
            await own.put(KEY, ANSWER)
            [name] = await rig.link.command("KEYS", "bitinglip:answer:*")
            held = await rig.link.command("GET", name)
            assert b"events" not in held
            assert KEY.hex().encode() not in name
            await own.put(b"l" * 32, ANSWER)
            names = await rig.link.command("KEYS", "bitinglip:answer:*")
            [second] = {*names} - {name}
            await rig.link.command("SET", second, held)  # another's answer under its name
            assert await own.get(b"l" * 32) is None
            await rig.link.command("SET", name, b"garbage")
            assert await own.get(KEY) is None

    asyncio.run(run())


def test_answer_ends_with_its_age(redis: RedisServer) -> None:
    async def run() -> None:
        async with opened(redis) as rig:
            own = rig.gateway()
            await own.put(KEY, ANSWER)
            rig.now += 30
            assert await own.get(KEY, max_age=29) is None
            assert await own.get(KEY, max_age=31) == ANSWER
            [name] = await rig.link.command("KEYS", "bitinglip:answer:*")
            assert 0 < await rig.link.command("PTTL", name) <= 60_000
            rig.now += 31
            assert await own.get(KEY) is None

    asyncio.run(run())


def test_answers_that_are_forgotten_are_no_gateway_s(redis: RedisServer) -> None:
    async def run() -> None:
        async with opened(redis) as rig:
            own, other = rig.gateway(), rig.gateway()
            await own.put(KEY, ANSWER)
            await rig.link.command("SET", "bitinglip:another", "1")
            [name] = await rig.link.command("KEYS", "bitinglip:answer:*")
            held = await rig.link.command("GET", name)
            await own.forget()
            assert await other.get(KEY) is None
            assert await rig.link.command("EXISTS", "bitinglip:another") == 1
            await rig.link.command("SET", name, held)  # as if it had not been removed
            assert await own.get(KEY) is None
            rig.now += 1
            await other.put(KEY, ANSWER)
            assert await own.get(KEY) == ANSWER

    asyncio.run(run())


def test_answers_of_a_gateway_take_no_more_than_their_bound(redis: RedisServer) -> None:
    async def run() -> None:
        async with opened(redis) as rig:
            own = rig.gateway(most=3 * ANSWER.size)
            for number in range(9):
                await own.put(bytes([number]) * 32, ANSWER)
            assert len(await rig.link.command("KEYS", "bitinglip:answer:*")) == 3
            rig.now += 61
            await own.put(b"x" * 32, ANSWER)
            assert await own.get(b"x" * 32) == ANSWER

    asyncio.run(run())


def test_answers_are_none_while_redis_is_away(redis: RedisServer) -> None:
    async def run() -> None:
        async with opened(redis) as rig:
            own = rig.gateway()
            await own.put(KEY, ANSWER)
            rig.link.lost("it is cut off")
            assert await own.get(KEY) is None
            await own.put(b"m" * 32, ANSWER)

    asyncio.run(run())


def test_answers_tell_that_redis_has_gone_so_that_no_other_request_waits(
    redis: RedisServer,
) -> None:
    async def run() -> None:
        async with opened(redis, timeout_ms=50) as rig:
            own = rig.gateway()
            assert await own.get(KEY) is None
            redis.freeze()
            try:
                assert await own.get(KEY) is None
                await until(lambda: rig.link.away is not None)
            finally:
                redis.thaw()
            await until(lambda: rig.link.away is None)

    asyncio.run(run())
