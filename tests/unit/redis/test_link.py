"""The way to Redis: what answers, what does not, and what comes back."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bitinglip.redis.errors import RedisAway
from bitinglip.redis.link import RedisLink
from bitinglip.redis.scripts import Script
from bitinglip.settings.redis import Redis as RedisSettings
from bitinglip.settings_loader import SettingsError
from bitinglip.telemetry.health import Health
from tests.support.redis import RedisServer
from tests.support.wait import until

ADD = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


@pytest.fixture
def server(redis: RedisServer) -> Iterator[RedisServer]:
    """Provide the module's server, empty and running again afterwards."""
    redis.flush()
    yield redis
    redis.thaw()
    redis.kill()
    redis.start()


@asynccontextmanager
async def opened(
    url: str, health: Health | None = None, *, timeout_ms: int = 500
) -> AsyncIterator[RedisLink]:
    settings = RedisSettings(url=url, timeout_ms=timeout_ms)
    link = await RedisLink.opened(settings, health or Health())
    try:
        yield link
    finally:
        await link.close()


def test_link_runs_calls_in_their_order(redis: RedisServer) -> None:
    async def run() -> None:
        async with opened(redis.url) as link:
            sums = [link.call(ADD, ["order"], [1]) for _ in range(600)]
            assert [await each for each in sums] == list(range(1, 601))

    asyncio.run(run())


def test_link_keeps_the_order_of_scripts_that_redis_meets_for_the_first_time(
    redis: RedisServer,
) -> None:
    first, second = (
        Script(f"redis.call('APPEND', KEYS[1], '{letter}') return redis.call('GET', KEYS[1])")
        for letter in "ab"
    )

    async def run() -> None:
        async with opened(redis.url) as link:
            link.tell(first, ["letters"])
            assert await link.call(second, ["letters"]) == b"ab"

    asyncio.run(run())


def test_link_loads_a_script_that_redis_has_forgotten(redis: RedisServer) -> None:
    async def run() -> None:
        async with opened(redis.url) as link:
            assert await link.call(ADD, ["forgotten"], [1]) == 1
            await link.command("SCRIPT", "FLUSH")
            both = [link.call(ADD, ["forgotten"], [1]), link.call(ADD, ["forgotten"], [1])]
            assert [await each for each in both] == [2, 3]

    asyncio.run(run())


def test_link_opens_a_connection_that_redis_has_closed(redis: RedisServer) -> None:
    async def run() -> None:
        async with opened(redis.url) as link:
            await link.command("SET", "kept", "1")
            with redis.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal")
            assert await link.command("GET", "kept") == b"1"
            assert link.away is None

    asyncio.run(run())


@pytest.mark.parametrize("how", ["freeze", "kill"])
def test_link_fails_at_once_while_redis_is_away(server: RedisServer, how: str) -> None:
    async def run() -> None:
        health, back = Health(), asyncio.Event()

        async def returned() -> None:
            back.set()

        async with opened(server.url, health) as link:
            link.on_return(returned)
            await link.command("PING")
            getattr(server, how)()
            began = time.monotonic()
            calls = [link.command("PING") for _ in range(1000)]
            lost = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(each) for each in lost} == {RedisAway}
            assert time.monotonic() - began < 10  # not a time-out for each
            assert health.has_problem("redis", "redis")
            with pytest.raises(RedisAway):
                await link.command("PING")  # which waits for nothing
            server.thaw() if how == "freeze" else server.start()
            await asyncio.wait_for(back.wait(), 60)
            await link.command("PING")
            assert not health.has_problem("redis", "redis")

    asyncio.run(run())


def test_link_begins_without_redis(tmp_path: Path) -> None:
    async def run() -> None:
        health = Health()
        async with opened(f"unix://{tmp_path}/none", health) as link:
            with pytest.raises(RedisAway):
                await link.command("PING")
            assert health.problems()["redis"].startswith("it cannot be reached")

    asyncio.run(run())


def test_link_says_why_redis_is_away_also_when_that_changes(server: RedisServer) -> None:
    health = Health()

    def said(words: str) -> bool:
        return words in health.problems().get("redis", "")

    async def run() -> None:
        async with opened(f"unix://:wrong@{server.socket}", health) as link:
            assert said("refuses the password")
            server.kill()
            await until(lambda: said("cannot be reached"))
            assert link.faults == 1
            server.start()
            await until(lambda: said("refuses the password"))

    asyncio.run(run())


def test_link_counts_what_refuses_writes_as_away(server: RedisServer) -> None:
    async def run() -> None:
        async with opened(server.url) as link:
            with server.client() as client:
                client.execute_command("REPLICAOF", "127.0.0.1", "1")
                with pytest.raises(RedisAway, match="only reads"):
                    await link.command("SET", "a", "1")
                assert link.away is not None
                client.execute_command("REPLICAOF", "NO", "ONE")
                await until(lambda: link.away is None)

    asyncio.run(run())


def test_link_takes_the_password_from_a_file(server: RedisServer, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.touch(0o600)
    secret.write_text("s3cret\n")

    async def run() -> None:
        settings = RedisSettings(url=server.url, password_file=str(secret))
        link = await RedisLink.opened(settings, Health())
        assert link.away is None
        await link.close()

    with server.client() as client:
        client.config_set("requirepass", "s3cret")
    asyncio.run(run())


def test_link_names_the_setting_of_a_password_that_cannot_be_read() -> None:
    settings = RedisSettings(url="redis://localhost", password_file="/nowhere/secret")
    with pytest.raises(
        SettingsError, match=r"redis\.password_file: /nowhere/secret cannot be read .no such file"
    ):
        RedisLink(settings, Health())


def test_link_tries_again_where_another_program_answers_in_place_of_redis(
    server: RedisServer, tmp_path: Path
) -> None:
    path, met = tmp_path / "s", []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer)
        for reply in (b"+OK\r\n", b"+OK\r\n", b"-MOVED\r\n"):
            asked = await reader.read(65536)
            writer.write(reply * (asked.count(b"\r\n*") + 1))
        await reader.read()
        writer.close()

    async def run() -> None:
        impostor = await asyncio.start_unix_server(answer, path)
        async with opened(f"unix://{path}") as link:
            assert link.away is not None
            await until(lambda: len(met) > 2)
            impostor.close()
            path.unlink()
            path.symlink_to(server.socket)
            await until(lambda: link.away is None)
            assert await link.command("PING") in (b"PONG", "PONG")

    asyncio.run(run())
