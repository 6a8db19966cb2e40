"""Transactions: one writer at a time, and readers that see what was committed."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import exc, text

from bitinglip.db.database import Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bitinglip.db"


def using(path: Path, act: Callable[[Database], Awaitable[None]]) -> None:
    async def run() -> None:
        database = await Database.open(path)
        try:
            await act(database)
        finally:
            await database.close()

    asyncio.run(run())


def test_readers_cannot_write_and_see_what_was_committed(path: Path) -> None:
    async def act(database: Database) -> None:
        async with database.write() as session:
            await session.execute(text("CREATE TABLE t (x INTEGER)"))
        async with database.read() as session:
            assert (await session.execute(text("SELECT count(*) FROM t"))).scalar() == 0
            with pytest.raises(exc.DBAPIError, match=r"read-?only"):
                await session.execute(text("INSERT INTO t VALUES (1)"))

    using(path, act)


def test_rollback_follows_an_exception_and_writers_take_turns(path: Path) -> None:
    async def add(database: Database, *, fail: bool) -> None:
        async with database.write() as session:
            count = (await session.execute(text("SELECT count(*) FROM t"))).scalar()
            await asyncio.sleep(0)
            await session.execute(text("INSERT INTO t VALUES (:x)"), {"x": count})
            if fail:
                raise KeyError

    async def act(database: Database) -> None:
        async with database.write() as session:
            await session.execute(text("CREATE TABLE t (x INTEGER)"))
        jobs = [add(database, fail=n % 2 == 0) for n in range(20)]
        await asyncio.gather(*jobs, return_exceptions=True)
        async with database.read() as session:
            assert list(await session.scalars(text("SELECT x FROM t"))) == list(range(10))

    using(path, act)


def test_cancel_of_a_writer_leaves_the_database_usable(path: Path) -> None:
    async def add(database: Database) -> None:
        async with database.write() as session:
            await session.execute(text("INSERT INTO t VALUES (1)"))

    async def act(database: Database) -> None:
        async with database.write() as session:
            await session.execute(text("CREATE TABLE t (x INTEGER)"))
        for turns in range(12):
            task = asyncio.create_task(add(database))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await add(database)
        await database.check()

    using(path, act)
