"""Two servers with one database and one Redis: limits that both keep together."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateways import Pair, running_pair
from tests.support.http_client import NATIVE
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.wait import eventually

TIERS: dict[str, dict[str, object]] = {
    "free": {"requests_per_hour": 50, "concurrent_requests": "null"},
    "pro": {"concurrent_requests": 50},
    "enterprise": {"daily.requests": 10},
}
NO_RATES: dict[str, object] = {"requests_per_minute": "null", "requests_per_hour": "null"}
LIMITS = [
    part
    for tier, limits in TIERS.items()
    for name, value in {**NO_RATES, **limits}.items()
    for part in ("--set", f"limits.tiers.{tier}.{name}={value}")
]
#: long enough for a busy machine, on which what is exact must stay so
TIMES = ("--set", "redis.lease=5", "--set", "redis.timeout_ms=3000")
CACHED = ("--set", "cache.responses=true", "--set", "redis.cache=true")
ECHO = {"model": "demo-echo", "prompt": "some words", "max_tokens": 1}
#: begins its answer at once, and goes on for as long as anything reads it
LONG = {"model": "demo-echo", "prompt": "!slow a", "max_tokens": 500, "stream": True}
ANSWERS_WITHIN = 20.0  #: seconds: the time-out, and what else a busy machine takes


@pytest.fixture(scope="module")
def pair(
    postgres: PostgresServer, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder: Path = tmp_path_factory.mktemp("pair")
    faults = ("--set", "models.demo-echo.fake.faults=true")
    shared = ("--set", f"redis.url={redis.url}", *TIMES, *faults, *LIMITS, *CACHED)
    with running_pair(folder, postgres.make(), *shared) as servers:
        yield servers


@pytest.fixture
def new_key(pair: Pair) -> Callable[[str], dict[str, str]]:
    """Make a key of a tier, which both servers know; the headers of its requests."""

    def make(tier: str) -> dict[str, str]:
        with pair.servers[0].client() as admin:
            made = admin.post("/api/v1/keys", json={"name": tier, "tier": tier}).json()
        headers = {"X-API-Key": made["key"]}
        with httpx.Client(base_url=pair.servers[1].url, headers=headers) as other:
            eventually(lambda: other.get("/api/v1/models").status_code == 200)
        return headers

    return make


async def opened(
    stack: AsyncExitStack, pair: Pair, headers: dict[str, str], body: dict[str, Any], count: int
) -> list[httpx.Response]:
    """Send requests at once, half to each server; return their answers, open still."""
    clients = [
        await stack.enter_async_context(server.async_client(headers=headers))
        for server in pair.servers
    ]

    async def send(number: int) -> httpx.Response:
        client = clients[number % 2]
        request = client.build_request("POST", NATIVE, json=body)
        answer = await client.send(request, stream=True)
        stack.push_async_callback(answer.aclose)
        return answer

    return await asyncio.gather(*[send(number) for number in range(count)])


def admitted(answers: list[httpx.Response]) -> int:
    assert {each.status_code for each in answers} <= {200, 429}
    return sum(each.status_code == 200 for each in answers)


def test_rate_of_two_gateways_admits_exactly_its_limit(
    pair: Pair, new_key: Callable[[str], dict[str, str]]
) -> None:
    headers = new_key("free")

    async def rush() -> None:
        async with AsyncExitStack() as stack:
            assert admitted(await opened(stack, pair, headers, ECHO, 400)) == 50

    asyncio.run(rush())


def test_places_of_two_gateways_admit_exactly_their_limit_and_outlive_none(
    pair: Pair, new_key: Callable[[str], dict[str, str]], redis: RedisServer
) -> None:
    """400 streams at once; then one gateway is killed: its places are free within its lease."""
    headers = new_key("pro")

    async def rush() -> None:
        async with AsyncExitStack() as stack:
            both = await opened(stack, pair, headers, LONG, 2)
            assert admitted(both) == 2
            answers = both + await opened(stack, pair, headers, LONG, 398)
            assert admitted(answers) == 50
            of_first = sum(each.status_code == 200 for each in answers[::2])
            pair.servers[0].process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(pair.servers[0].process.wait, 60)
            other = await stack.enter_async_context(pair.servers[1].async_client(headers=headers))
            await asyncio.to_thread(eventually, lambda: places(redis) <= 50 - of_first)
            assert (await other.post(NATIVE, json=ECHO)).status_code == 200

    try:
        asyncio.run(rush())
        eventually(lambda: places(redis) == 0)
    finally:
        if pair.servers[0].process.poll() is not None:  # else it failed before, and may run again
            pair.start(0)


def places(redis: RedisServer) -> int:
    """Count the places of all keys whose leases have not ended."""
    with redis.client() as client:
        keys = client.keys("bitinglip:*:places")
        now = time.time() * 1_000_000
        return sum(client.zcount(key, now, "+inf") for key in keys)


def test_quota_of_a_flushed_redis_is_that_of_the_database(
    pair: Pair, new_key: Callable[[str], dict[str, str]], redis: RedisServer
) -> None:
    headers = new_key("enterprise")

    async def rush() -> None:
        async with AsyncExitStack() as stack:
            assert admitted(await opened(stack, pair, headers, ECHO, 40)) == 10

    asyncio.run(rush())
    with pair.servers[0].client(headers=headers) as one:
        eventually(lambda: written(one) == 10)
    redis.flush()
    for server in pair.servers:
        with server.client(headers=headers) as client:
            refused = client.post(NATIVE, json=ECHO)
            assert refused.json()["error"]["code"] == "QUOTA_EXCEEDED"


def test_answer_of_one_gateway_is_the_other_s(
    pair: Pair, new_key: Callable[[str], dict[str, str]], redis: RedisServer
) -> None:
    headers = new_key("pro")
    body = {**ECHO, "prompt": "a secret prompt", "temperature": 0}
    with pair.servers[0].client(headers=headers) as one:
        first = one.post(NATIVE, json=body)
    assert first.headers["X-Cache"] == "MISS"
    with redis.client() as client:
        eventually(lambda: client.keys("bitinglip:answer:*"))
        for key in client.keys("bitinglip:answer:*"):
            assert b"secret" not in key + client.get(key)
    with pair.servers[1].client(headers=headers) as two:
        second = two.post(NATIVE, json=body)
        assert second.headers["X-Cache"] == "HIT"
        assert second.json()["result"] == first.json()["result"]
    with pair.servers[1].client(headers=new_key("pro")) as other:
        assert other.post(NATIVE, json=body).headers["X-Cache"] == "MISS"


@pytest.mark.parametrize("redis_answers", [True, False])
def test_cache_that_one_gateway_clears_is_cleared_in_the_other_s_memory(
    pair: Pair,
    new_key: Callable[[str], dict[str, str]],
    redis: RedisServer,
    redis_answers: bool,
) -> None:
    headers = new_key("pro")
    body = {**ECHO, "prompt": f"cleared {redis_answers}", "temperature": 0}
    with (
        pair.servers[0].client() as admin,
        pair.servers[1].client(headers=headers) as other,
    ):

        def outcome() -> str:
            return str(other.post(NATIVE, json=body).headers["X-Cache"])

        assert [outcome(), outcome()] == ["MISS", "HIT"]
        if not redis_answers:
            redis.freeze()
        try:
            assert admin.delete("/api/v1/cache").status_code == 204
            eventually(lambda: outcome() == "MISS")
            assert outcome() == "HIT", "what is computed after it is kept"
        finally:
            if not redis_answers:
                redis.thaw()
                eventually(lambda: admin.get("/health").json()["checks"]["redis"]["ok"])


def test_metrics_show_what_gateways_share(pair: Pair) -> None:
    with pair.servers[1].client() as client:
        # Redis may have been away a moment ago, by a test before this one.
        eventually(lambda: "bitinglip_redis_up 1.0" in client.get("/metrics").text)
        text = client.get("/metrics").text
    assert 'bitinglip_redis_held{kind="places"}' in text


def written(client: httpx.Client) -> int:
    """Count the requests of a key that are in the database."""
    rows = client.get("/api/v1/usage").json()["data"]
    return sum(row["requests"] for row in rows)


@pytest.mark.parametrize("how", ["freeze", "kill"])
def test_requests_go_on_while_redis_is_away(
    pair: Pair, new_key: Callable[[str], dict[str, str]], redis: RedisServer, how: str
) -> None:
    headers = new_key("pro")
    with pair.servers[0].client(headers=headers) as client:
        assert client.post(NATIVE, json=ECHO).status_code == 200
        getattr(redis, how)()
        try:
            for _ in range(3):
                began = time.monotonic()
                assert client.post(NATIVE, json=ECHO).status_code == 200
                assert time.monotonic() - began < ANSWERS_WITHIN
            check = client.get("/health").json()["checks"]["redis"]
            assert not check["ok"]
            assert "limits are this gateway's own" in check["detail"]
        finally:
            redis.thaw() if how == "freeze" else redis.start()
        eventually(lambda: client.get("/health").json()["checks"]["redis"]["ok"])
        assert client.post(NATIVE, json=ECHO).status_code == 200
    eventually(lambda: places(redis) == 0)
    assert all(server.idle() for server in pair.servers)
