"""Limits and quotas in Redis over connections that break at any byte."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bitinglip.access.limits.gcra import SECOND, Rate
from bitinglip.access.limits.store import Cell
from bitinglip.access.shared.limits import RateRequest, SharedLimits
from bitinglip.access.usage.amounts import Amounts
from bitinglip.redis.errors import RedisAway
from tests.support.cutting_proxy import CuttingProxy, cutting_proxy
from tests.support.redis import RedisServer
from tests.support.shared_limits import Gateway, gateways
from tests.support.wait import until

#: earned back within days only, so that what was taken can be counted
SLOW = Rate(1, 3600 * SECOND, 10_000)
PLACES = 4
TOKENS = 10**6
FREE: dict[str, Any] = {
    "requests_per_minute": None,
    "requests_per_hour": None,
    "daily": {"tokens": TOKENS},
}
SEEDS = range(2)


@asynccontextmanager
async def cut_off(
    folder: Path, server: RedisServer, seed: int
) -> AsyncIterator[tuple[CuttingProxy, list[Gateway]]]:
    """Provide two gateways with a proxy between them and Redis, which cuts from now on."""
    server.flush()
    path = server.folder / f"p{seed}"
    redis = {"lease": 2, "timeout_ms": 2000}
    async with (
        cutting_proxy(path, server.socket, b"EVALSHA", seed, 0.1) as proxy,
        gateways(folder, 2, f"unix://{path}", FREE, redis=redis) as both,
    ):
        proxy.cuts = True
        yield proxy, both
        proxy.cuts = False


def limits_of(gateway: Gateway) -> SharedLimits:
    assert gateway.shared_counts is not None
    return gateway.shared_counts.limits


async def mended(proxy: CuttingProxy, both: list[Gateway]) -> None:
    """Wait until both gateways have a connection that lasts, and have sent what they had to."""
    proxy.cuts = False
    for each in both:
        link = each.link
        assert link is not None
        await until(lambda link=link: link.away is None)  # type: ignore[misc]  # bound at once
        await each.told()


async def taken(limits: SharedLimits, cell: Cell) -> int:
    """Count the units of a slow rate that are taken."""
    found = await limits.take("k", [RateRequest(cell, 0)], reads=True)
    return SLOW.burst - found.decision.readings[0].remaining


def test_lost_answer_of_what_was_taken_takes_nothing_more(
    tmp_path: Path, redis: RedisServer
) -> None:
    cell = Cell("k:slow", SLOW)

    async def run() -> None:
        async with cut_off(tmp_path, redis, 0) as (proxy, [own, _]):
            proxy.cuts = False
            limits, asked = limits_of(own), [RateRequest(cell, 3)]
            assert await taken(limits, cell) == 0

            proxy.loses = 1
            found = await limits.take("k", asked, name="n", places=1)
            assert (found.passes, found.room, await taken(limits, cell)) == (True, True, 3)
            assert found.decision.readings[0].remaining == SLOW.burst - 3

            proxy.loses = 1  # it has no name by which it could be known
            with pytest.raises(RedisAway, match="connection broke"):
                await limits.take("k", asked)
            assert await taken(limits, cell) == 6

            proxy.loses = 1
            limits.give("k", [RateRequest(cell)])
            await own.told()
            assert await taken(limits, cell) == 5

            proxy.loses = 1
            limits.give("k", place="n")
            await own.told()
            assert (await limits.take("k", name="m", places=1)).passes

            quotas = own.shared_counts.quotas if own.shared_counts is not None else None
            assert quotas is not None
            request = quotas.asked("k", [1])
            assert request is not None
            request = request._replace(reserve=(1, 50, 0, 0, 0))
            await quotas.take("k", [], request, name="q0")  # which tells Redis what was used
            proxy.loses = 1
            assert (await quotas.take("k", asked, request, name="q1")).passes
            assert await taken(limits, cell) == 8
            assert own.link is not None
            assert (proxy.loses, own.link.faults) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("seed", SEEDS)
def test_place_and_rate_are_taken_once_over_connections_that_break(
    tmp_path: Path, redis: RedisServer, seed: int
) -> None:
    cell, inside, passed, lost, most = Cell("k:slow", SLOW), 0, 0, 0, 0

    async def work(limits: SharedLimits) -> None:
        nonlocal inside, passed, lost, most
        for _ in range(25):
            name = limits.name()
            try:
                found = await limits.take("k", [RateRequest(cell)], name=name, places=PLACES)
            except RedisAway:
                lost += 1
                await asyncio.sleep(0.01)
                continue
            if not found.passes:
                await asyncio.sleep(0.005)
                continue
            passed, inside = passed + 1, inside + 1
            most = max(most, inside)
            await asyncio.sleep(0.002)
            inside -= 1
            limits.give("k", place=name)

    async def run() -> None:
        async with cut_off(tmp_path, redis, seed) as (proxy, both):
            await asyncio.gather(*(work(limits_of(both[n % 2])) for n in range(8)))
            await mended(proxy, both)
            assert proxy.breaks > 0
            assert passed > 0
            assert 0 < most <= PLACES
            assert passed <= await taken(limits_of(both[0]), cell) <= passed + lost
            with redis.client() as client:  # those of calls that were lost, until their leases end
                await until(lambda: not client.exists("bitinglip:{k}:places"))

    asyncio.run(run())


@pytest.mark.parametrize("seed", SEEDS)
def test_units_are_given_back_once_over_connections_that_break(
    tmp_path: Path, redis: RedisServer, seed: int
) -> None:
    cell, calls = Cell("k:slow", SLOW), 100

    async def run() -> None:
        async with cut_off(tmp_path, redis, seed) as (proxy, both):
            proxy.cuts = False
            await limits_of(both[0]).take("k", [RateRequest(cell, 2 * calls)])
            proxy.cuts = True
            for number in range(calls):
                limits_of(both[number % 2]).give("k", [RateRequest(cell)])
                await asyncio.sleep(0.003)
            await mended(proxy, both)
            assert proxy.breaks > 0
            assert calls <= await taken(limits_of(both[0]), cell) <= 2 * calls

    asyncio.run(run())


@pytest.mark.usefixtures("away_from_midnight")
@pytest.mark.parametrize("seed", SEEDS)
def test_quota_is_charged_once_over_connections_that_break(
    tmp_path: Path, redis: RedisServer, seed: int
) -> None:
    chance, charged = Random(seed), 0

    async def work(gateway: Gateway) -> None:
        nonlocal charged
        for _ in range(20):
            reservation = await gateway.reserve(50)
            assert reservation is not None
            await asyncio.sleep(0.002)
            tokens = chance.randrange(1, 50)
            charged += tokens
            gateway.meter.settle(reservation, Amounts(requests=1, completion_tokens=tokens))

    async def run() -> None:
        async with cut_off(tmp_path, redis, seed) as (proxy, both):
            await asyncio.gather(*(work(both[n % 2]) for n in range(6)))
            await mended(proxy, both)
            assert proxy.breaks > 0
            for each in both:
                assert each.shared_counts is not None
                await each.shared_counts.quotas.settled()
                await each.shared_counts.quotas.raise_charged()
            day = both[0].meter.today.name
            with redis.client() as client:
                used = client.hgetall(f"bitinglip:{{k}}:used:{day}")
                await until(lambda: not client.exists("bitinglip:{k}:reserved"))
            assert int(used[b"2"]) == charged
            assert int(used[b"1"]) == 6 * 20

    asyncio.run(run())
