"""Quotas in memory and in Redis: one suite, and what several gateways count together."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bitinglip.access.usage.amounts import REQUESTS
from bitinglip.access.usage.quotas import Quota
from tests.support.redis import RedisServer
from tests.support.shared_limits import Gateway, count_passing, gateways, passes
from tests.support.wait import until

FREE: dict[str, Any] = {
    "requests_per_minute": None,
    "requests_per_hour": None,
    "concurrent_requests": None,
}


@pytest.fixture
def server(redis: RedisServer, away_from_midnight: None) -> RedisServer:  # noqa: ARG001
    redis.flush()
    return redis


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest, server: RedisServer) -> str | None:
    return server.url if request.param == "redis" else None


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def raised(*all_gateways: Gateway) -> None:
    """Compare what was charged with the database, as the server does every two seconds."""
    for each in all_gateways:
        if each.shared_counts is not None:
            await each.shared_counts.quotas.raise_charged()


def test_quota_of_requests_admits_exactly_so_many_at_once(tmp_path: Path, url: str | None) -> None:
    async def rush() -> None:
        async with gateways(
            tmp_path, 2 if url else 1, url, {"daily": {"requests": 50}, **FREE}
        ) as both:
            asked = [both[n % len(both)].reserve() for n in range(400)]
            assert sum(each is not None for each in await asyncio.gather(*asked)) == 50

    run(rush())


def test_quota_takes_what_a_request_may_use_and_gives_the_rest_back(
    tmp_path: Path, url: str | None
) -> None:
    async def use() -> None:
        limits = {"monthly": {"tokens": 1_000}, **FREE}
        async with gateways(tmp_path, 2 if url else 1, url, limits) as both:
            first = await both[0].reserve(1_000)
            assert first is not None
            assert await both[-1].reserve(1) is None
            await both[0].settle(first, 400)
            assert await both[-1].use(600)
            assert not await both[0].use(1)
            assert not await both[0].passes("k", REQUESTS + 1)

    run(use())


def test_quota_refuses_at_the_door_with_its_numbers(tmp_path: Path, url: str | None) -> None:
    async def use() -> None:
        limits = {"daily": {"requests": 1}, **FREE}
        async with gateways(tmp_path, 2 if url else 1, url, limits) as both:
            assert await both[0].use()
            error = (await both[-1].enter("k", REQUESTS)).refusal
            assert error is not None
            assert error.details["quota"] == "daily.requests"
            assert (error.details["limit"], error.details["used"]) == (1, 1)

    run(use())


def test_quota_shows_what_all_gateways_use_and_reserve(tmp_path: Path, server: RedisServer) -> None:
    async def look() -> None:
        limits = {"daily": {"tokens": 100}, "tokens_per_minute": 60, **FREE}
        async with gateways(tmp_path, 2, server.url, limits) as both:
            assert await both[0].use(30)
            assert await both[0].reserve(20) is not None
            assert both[1].shared_counts is not None
            await both[1].shared_counts.quotas.refresh("k")
            [state] = both[1].meter.read("k")
            assert (state.used, state.reserved) == (30, 20)
            left = both[1].rates.read("k")
            assert left is not None
            assert 10 <= left.remaining < 30  # one comes back each second

    run(look())


def test_quota_is_read_from_the_database_where_redis_was_flushed(
    tmp_path: Path, server: RedisServer
) -> None:
    async def flush() -> None:
        limits = {"daily": {"tokens": 500}, "monthly": {"tokens": 1_000}, **FREE}
        async with gateways(tmp_path, 2, server.url, limits) as both:
            assert await both[0].use(300)
            await both[0].write_behind.flush()
            server.flush()
            assert await both[1].use(200)
            assert not await both[1].use(1)
            assert not await both[0].use(1)
            await both[1].write_behind.flush()
            server.flush()
            assert not await both[0].use(1)

    run(flush())


def test_quota_counts_what_another_had_not_written_when_redis_was_flushed(
    tmp_path: Path, server: RedisServer
) -> None:
    async def flush() -> None:
        async with gateways(tmp_path, 2, server.url, {"daily": {"tokens": 500}, **FREE}) as both:
            assert await both[0].use(300)  # its row is in memory still
            server.flush()
            assert await both[1].use(100)
            await raised(*both)
            assert await both[1].use(100)
            assert not await both[1].use(1)

    run(flush())


def test_quota_is_never_counted_twice(tmp_path: Path, server: RedisServer) -> None:
    async def compare() -> None:
        async with gateways(tmp_path, 2, server.url, {"daily": {"tokens": 10_000}, **FREE}) as both:
            for round_ in range(5):
                for each in both:
                    assert await each.use(10)
                await raised(*both)
                if round_ == 2:
                    server.flush()
            await raised(*both)
            state = _counted(server, "used:????-??-??")
            assert state == {b"1": 10, b"2": 100, b"3": 0, b"4": 0, b"5": 0}

    run(compare())


def _counted(server: RedisServer, name: str) -> dict[bytes, int]:
    with server.client() as client:
        [key] = client.keys(f"bitinglip:{{k}}:{name}")
        return {field: int(value) for field, value in client.hgetall(key).items()}


def test_quota_is_charged_once_where_the_answer_to_the_charge_is_lost(
    tmp_path: Path, server: RedisServer
) -> None:
    async def lose() -> None:
        async with (
            cutting(server, b"\r\n77\r\n") as (url, cuts),
            gateways(tmp_path, 1, url, {"daily": {"tokens": 1000}, **FREE}) as [one],
        ):
            assert await one.use(10)
            reservation = await one.reserve(100)
            assert reservation is not None
            await one.settle(reservation, 77)
            assert cuts == [True], "the charge was sent again"
            state = _counted(server, "used:????-??-??")
            assert state == {b"1": 2, b"2": 87, b"3": 0, b"4": 0, b"5": 0}

    run(lose())


@asynccontextmanager
async def cutting(server: RedisServer, mark: bytes) -> AsyncIterator[tuple[str, list[bool]]]:
    """Stand between a gateway and Redis; of the first call that holds ``mark``, lose the answer."""
    cuts: list[bool] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, calls = await asyncio.open_unix_connection(str(server.socket))
        back = asyncio.create_task(_copied(answers, writer))
        try:
            while data := await reader.read(1 << 16):
                if mark in data and not cuts:
                    cuts.append(True)
                    back.cancel()
                    calls.write(data)
                    await answers.read(1)  # it was done
                    return
                calls.write(data)
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            for each in (writer, calls):
                each.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}", cuts


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)


def test_quota_reserved_by_a_gateway_that_died_is_free_after_its_lease(
    tmp_path: Path, server: RedisServer
) -> None:
    async def die() -> None:
        limits = {"daily": {"tokens": 100}, **FREE}
        async with gateways(tmp_path, 2, server.url, limits, redis={"lease": 2}) as both:
            assert await both[0].reserve(100) is not None
            assert not await both[1].use(1)
            await passes(lambda: both[1].use(1))

    run(die())


def test_quota_that_ends_while_a_request_runs_leaves_nothing_reserved(
    tmp_path: Path, server: RedisServer
) -> None:
    async def end() -> None:
        async with gateways(tmp_path, 1, server.url, {"daily": {"tokens": 100}, **FREE}) as [own]:
            assert own.shared_counts is not None
            shared, plan_of = own.shared_counts, own.meter._plan_of
            running = await own.reserve(10)
            reserving = asyncio.create_task(own.reserve(10))
            dropped = await shared.quotas.reserve("k", lambda: (1, 10, 0, 0, 0))
            assert running is not None
            assert dropped is not None
            own.meter._plan_of = lambda _key: ()
            late = await reserving
            assert late is not None
            shared.quotas.drop("k", dropped)
            for each in (running, late):
                await own.settle(each, 10)
            assert shared.limits.held == (0, 0)
            own.meter._plan_of = plan_of
            assert own.meter.read("k")[0].used <= 20

    run(end())


@pytest.mark.parametrize("left", [0, 1])
def test_quota_that_changes_while_redis_is_asked_is_that_which_was_asked(
    tmp_path: Path, server: RedisServer, left: int
) -> None:
    async def change() -> None:
        limits = {**FREE, "daily": {"requests": 1 + left}, "concurrent_requests": 5}
        async with gateways(tmp_path, 1, server.url, limits) as [own]:
            assert own.shared_counts is not None
            assert await own.use()
            entering = asyncio.create_task(own.enter("k", REQUESTS))
            await asyncio.sleep(0)
            smaller = (Quota("daily", REQUESTS, 1),)
            own.meter._plan_of = lambda _key: smaller if left else ()
            entered = await entering
            assert (entered.refusal is None) == bool(left)
            if left:
                own.admission.leave(entered, refund=False)
            assert own.admission.in_flight == 0
            assert own.shared_counts.limits.held == (0, 0)

    run(change())


@pytest.fixture
def restarting(server: RedisServer) -> Iterator[RedisServer]:
    yield server
    server.kill()
    server.start()


def test_quota_charged_while_redis_was_away_counts_once_it_is_back(
    tmp_path: Path, restarting: RedisServer
) -> None:
    async def lose() -> None:
        async with gateways(
            tmp_path, 2, restarting.url, {"daily": {"tokens": 100}, **FREE}
        ) as both:
            assert await both[0].use(40)
            running = await both[0].reserve(10)
            assert running is not None
            restarting.kill()
            await both[0].settle(running, 10)
            assert await both[0].use(30)
            await both[0].write_behind.flush()
            restarting.start()
            await until(lambda: all(each.link and each.link.away is None for each in both[:1]))
            assert await both[0].use(20)
            await raised(*both)
            assert not await both[1].passes("k", REQUESTS + 1)
            assert await count_passing(both, 4, REQUESTS + 1) == 0

    run(lose())


@pytest.mark.parametrize("count", ["nan", "-nan", "1e5", "0x10", "many", "1" * 400])
def test_quota_that_another_program_has_spoiled_is_this_gateway_s_own(
    tmp_path: Path, server: RedisServer, count: str
) -> None:
    async def spoil() -> None:
        async with gateways(tmp_path, 1, server.url, {"daily": {"requests": 2}, **FREE}) as [own]:
            assert own.link is not None
            assert own.shared_counts is not None
            assert await own.use()
            with server.client() as client:
                for key in client.keys("bitinglip:{k}:used:*"):
                    client.hset(key, "1", count)
            passing = [await own.use() for _ in range(3)]
            assert passing in ([True, False, False], [False, False, False])
            assert await own.use(key="another")
            assert own.link.away is None
            assert own.shared_counts.limits.held == (0, 0)

    run(spoil())


@pytest.mark.parametrize("name", ["places", "reserved", "k:minute"])
def test_limits_of_a_key_that_another_program_has_spoiled_leave_those_of_others(
    tmp_path: Path, server: RedisServer, name: str
) -> None:
    async def spoil() -> None:
        limits = {"daily": {"requests": 2}, "requests_per_minute": 5, "concurrent_requests": 5}
        async with gateways(tmp_path, 1, server.url, limits) as [own]:
            assert own.link is not None
            with server.client() as client:
                client.lpush(f"bitinglip:{{k}}:{name}", "spoiled")
            assert await own.use()
            assert await own.passes("k", REQUESTS)
            assert await own.passes("another", REQUESTS)
            assert own.link.away is None

    run(spoil())
