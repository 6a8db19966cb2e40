"""Limits in memory and in Redis: one suite, and what only several gateways can show."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bitinglip.access.limits.gcra import FULL, SECOND, Rate
from bitinglip.access.limits.logins import FailedLogins
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.limits.store import Cell, MemoryStore
from bitinglip.access.shared.limits import RateRequest, SharedLimits
from bitinglip.access.shared.ticks import asked, ticks
from bitinglip.errors import (
    BitingLipError,
    ConcurrencyLimitExceeded,
    InvalidApiKey,
    LimitsUnavailable,
    RateLimitExceeded,
)
from bitinglip.redis.link import RedisLink
from bitinglip.settings.redis import Redis as RedisSettings
from bitinglip.telemetry.health import Health
from tests.support.redis import RedisServer
from tests.support.shared_limits import count_passing, gateways, passes
from tests.support.wait import until

UNLIMITED: dict[str, Any] = {"requests_per_minute": None, "concurrent_requests": None}


@pytest.fixture
def server(redis: RedisServer) -> RedisServer:
    redis.flush()
    return redis


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest, server: RedisServer) -> str | None:
    """Provide the place where limits are kept: the gateway's memory, or Redis."""
    return server.url if request.param == "redis" else None


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


# ---- the same in memory and in Redis -------------------------------------------------------------


def test_rate_admits_exactly_its_burst_of_many_at_once(tmp_path: Path, url: str | None) -> None:
    async def rush() -> None:
        async with gateways(
            tmp_path, 2 if url else 1, url, {**UNLIMITED, "requests_per_hour": 50}
        ) as both:
            assert await count_passing(both, 400) == 50

    run(rush())


def test_places_admit_exactly_so_many_at_once(tmp_path: Path, url: str | None) -> None:
    async def rush() -> None:
        limits = {**UNLIMITED, "requests_per_hour": None, "concurrent_requests": 50}
        async with gateways(tmp_path, 2 if url else 1, url, limits) as both:
            asking = [both[n % len(both)].enter() for n in range(400)]
            found = await asyncio.gather(*asking)
            inside = [n for n, each in enumerate(found) if each.refusal is None]
            assert len(inside) == 50
            refused = {type(each.refusal) for each in found if each.refusal is not None}
            assert refused == {ConcurrencyLimitExceeded}
            for n in inside[:7]:
                both[n % len(both)].admission.leave(found[n], refund=False)
            assert await count_passing(both, 100) == 7

    run(rush())


def test_admission_takes_nothing_where_one_limit_refuses(tmp_path: Path, url: str | None) -> None:
    async def ask() -> None:
        limits = {"requests_per_minute": 5, "requests_per_hour": 8, "concurrent_requests": 20}
        async with gateways(tmp_path, 1, url, limits) as [own]:
            entered = [await own.enter() for _ in range(5)]
            for _ in range(10):
                refused = await own.enter()
                assert isinstance(refused.refusal, RateLimitExceeded)
                assert refused.refusal.details["violated_policies"] == ["minute"]
            _, readings, places = await own.admission.read("k", "free", LimitClass.INFERENCE)
            assert [each.remaining for each in readings] == [0, 3]
            assert places == 5
            own.admission.leave(entered[0], refund=True)
            _, readings, places = await own.admission.read("k", "free", LimitClass.INFERENCE)
            assert [each.remaining for each in readings] == [1, 4]
            assert places == 4

    run(ask())


def test_admission_of_a_full_key_takes_no_rate(tmp_path: Path, url: str | None) -> None:
    async def ask() -> None:
        limits = {"requests_per_minute": 5, "concurrent_requests": 1}
        async with gateways(tmp_path, 1, url, limits) as [own]:
            first = await own.enter()
            assert isinstance((await own.enter()).refusal, ConcurrencyLimitExceeded)
            own.admission.leave(first, refund=False)
            second = await own.enter()
            assert dict(second.headers)[b"x-ratelimit-remaining-requests"] == b"3"

    run(ask())


def test_token_rate_takes_the_most_and_gives_the_rest_back(tmp_path: Path, url: str | None) -> None:
    async def ask() -> None:
        limits = {"tokens_per_minute": 1_000, "requests_per_minute": None}
        async with gateways(tmp_path, 2 if url else 1, url, limits) as both:
            first = await both[0].reserve(1_000)
            assert first is not None
            assert await both[-1].reserve(900) is None
            await both[0].settle(first, 300)
            assert await both[-1].reserve(700) is not None
            assert await both[0].reserve(900) is None

    run(ask())


# ---- what Redis computes, beside what memory does ------------------------------------------------

RATES = st.builds(
    Rate,
    quota=st.one_of(st.integers(1, 12), st.integers(10**8, 10**9)),
    window=st.integers(1_000, 3600 * SECOND),
    burst=st.one_of(st.integers(1, 12), st.integers(10**6, 10**9)),
).filter(
    lambda rate: rate.burst * rate.window * FULL // rate.quota < 1 << 51
)  # 71 years, see ticks
STEPS = st.lists(
    st.tuples(st.floats(0, 1.5), st.sampled_from([FULL, 700, 333, 1]), st.booleans()),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25)
@given(st.lists(RATES, min_size=1, max_size=3), STEPS)
def test_rate_in_redis_decides_as_in_memory(
    redis: RedisServer, rates: list[Rate], steps: list[tuple[float, int, bool]]
) -> None:
    """Each decision is repeated in memory, at the time that Redis had: not one tick differs."""
    shares = {share for _, share, _ in steps}
    most = min(rate.burst for rate in rates)
    assume(all(max(asked(each, most, share)) < 1 << 51 for each in rates for share in shares))

    async def compare() -> None:
        link = await RedisLink.opened(RedisSettings(url=redis.url, timeout_ms=5000), Health())
        limits, memory = SharedLimits(link), MemoryStore()
        await link.command("FLUSHALL")
        cells = [Cell(f"k:{n}", rate) for n, rate in enumerate(rates)]
        for part, share, back in steps:
            cost = min(most, round(part * most))
            wanted = [RateRequest(cell, cost, share) for cell in cells]
            taken = await limits.take("k", wanted, reads=cost == 0)
            expected = memory.take_now(cells, taken.now, cost=cost, share=share)
            assert taken.decision == expected
            assert taken.passes == (expected.wait == 0)
            if back and taken.passes and cost:
                limits.give("k", wanted)
                memory.refund(cells, cost=cost, share=share)
        await link.close()

    run(compare())


@given(RATES, st.floats(0, 1), st.sampled_from([FULL, 999, 500, 7]))
def test_ticks_are_whole_below_what_doubles_hold(rate: Rate, part: float, share: int) -> None:
    cost = round(part * rate.burst)
    _, taken, taken_part, most, most_part = asked(rate, cost, share)
    today = 1 << 51  # microseconds since 1970: until 2041
    assert max(taken + most + today, taken_part + most_part) < 1 << 53
    assert max(taken_part, most_part) < rate.quota
    if most < 1 << 51:
        unit = rate.window if share == FULL else -(-rate.window * FULL // share)
        assert ticks(taken, taken_part, rate) == cost * unit


def test_rate_keeps_what_was_taken_where_the_clock_goes_back(server: RedisServer) -> None:
    async def ask() -> None:
        async def wait(cell: Cell) -> int:
            return (await limits.take("k", [RateRequest(cell)])).decision.wait

        link = await RedisLink.opened(RedisSettings(url=server.url), Health())
        limits, cell = SharedLimits(link), Cell("k:minute", Rate(1, 60 * SECOND, 1))
        taken = await limits.take("k", [RateRequest(cell)])
        ahead = taken.now + 7200 * SECOND  # as if it had been taken two hours later
        state = f"{ahead + 60 * SECOND} 0 1 {ahead}"
        await link.command("SET", limits.key("k", cell.id), state)
        assert 50 * SECOND < await wait(cell) <= 60 * SECOND
        await link.close()

    run(ask())


# ---- several gateways, and a Redis that comes and goes -------------------------------------------


def test_places_of_a_gateway_that_died_are_free_after_its_lease(
    tmp_path: Path, server: RedisServer
) -> None:
    async def die() -> None:
        limits = {"requests_per_minute": None, "requests_per_hour": None, "concurrent_requests": 3}
        async with gateways(tmp_path, 2, server.url, limits, redis={"lease": 2}) as both:
            assert await count_passing([both[0]], 3) == 3  # which never renews them
            assert not await both[1].passes()
            await passes(both[1].passes)
            assert await count_passing([both[1]], 3) == 2

    run(die())


def test_places_of_a_living_gateway_come_back_after_a_flush(
    tmp_path: Path, server: RedisServer
) -> None:
    async def flush() -> None:
        limits = {"requests_per_minute": None, "requests_per_hour": None, "concurrent_requests": 3}
        async with gateways(tmp_path, 2, server.url, limits) as both:
            assert await count_passing([both[0]], 2) == 2
            server.flush()
            assert both[0].shared_counts is not None
            await both[0].shared_counts.limits.renew()
            await both[0].told()
            assert await count_passing([both[1]], 3) == 1

    run(flush())


def test_admission_that_is_cancelled_takes_nothing(tmp_path: Path, server: RedisServer) -> None:
    async def leave() -> None:
        limits = {"requests_per_minute": 5, "requests_per_hour": None, "concurrent_requests": 3}
        async with gateways(tmp_path, 1, server.url, limits) as [own]:
            entering = [asyncio.create_task(own.enter()) for _ in range(3)]
            await asyncio.sleep(0)
            for each in entering:
                each.cancel()
            await asyncio.gather(*entering, return_exceptions=True)
            assert own.shared_counts is not None
            assert own.admission.in_flight == 0
            await own.told()  # what they took, and then what they gave back
            _, [reading], places = await own.admission.read("k", "free", LimitClass.INFERENCE)
            assert (reading.remaining, places, own.shared_counts.limits.held) == (5, 0, (0, 0))

    run(leave())


@pytest.fixture
def restarting(server: RedisServer) -> Any:
    yield server
    server.thaw()
    server.kill()
    server.start()


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_limits_are_a_gateway_s_own_while_redis_is_away(
    tmp_path: Path, restarting: RedisServer, how: str
) -> None:
    async def lose() -> None:
        limits = {"requests_per_minute": 10, "requests_per_hour": None, "concurrent_requests": 4}
        options = {"timeout_ms": 200}
        async with gateways(tmp_path, 2, restarting.url, limits, redis=options) as both:
            assert await count_passing(both, 4) == 4
            getattr(restarting, how)()
            # what it knew goes on: 2 of its own places are taken, and 6 of the minute are left
            assert await count_passing([both[0]], 10) == 2
            assert both[0].shared_counts is not None
            assert both[0].shared_counts.limits.held == (4, 0)
            restarting.thaw() if how == "freeze" else restarting.start()
            await until(lambda: both[0].link is not None and both[0].link.away is None)
            # all that it holds is known again, also what it gave meanwhile
            await until(lambda: _places(restarting) >= 4)

    run(lose())


def _places(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.zcard("bitinglip:{k}:places"))


def test_limits_refuse_while_redis_is_away_where_the_settings_say_so(
    tmp_path: Path, restarting: RedisServer
) -> None:
    async def lose() -> None:
        options = {"timeout_ms": 200, "when_away": "refuse"}
        async with gateways(tmp_path, 1, restarting.url, redis=options) as [own]:
            restarting.kill()
            for _ in range(3):
                with pytest.raises(LimitsUnavailable):
                    await own.enter()
            assert own.admission.in_flight == 0
            restarting.start()
            await until(lambda: own.link is not None and own.link.away is None)
            assert await own.passes()

    run(lose())


def test_failed_logins_are_counted_by_all_gateways(tmp_path: Path, server: RedisServer) -> None:
    error = InvalidApiKey()

    async def guess() -> None:
        async with gateways(tmp_path, 2, server.url) as both:
            desks = [FailedLogins(6, each.shared_counts) for each in both]

            def count(n: int) -> BitingLipError:
                return desks[n].count("10.0.0.1", error)

            assert [count(0) for _ in range(5)] == [error] * 5
            await desks[0].settled()
            assert count(1) is error
            await desks[1].settled()
            assert isinstance(count(1), RateLimitExceeded)
            assert desks[1].count("10.0.0.2", error) is error

    run(guess())
