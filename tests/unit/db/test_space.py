"""The database and its log give the room of what was deleted back to the disk."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from bitinglip.db import sqlite
from bitinglip.db.database import Database
from bitinglip.db.migrations.upgrade import upgrade

pytestmark = pytest.mark.sqlite  # other databases care for their space themselves


def test_log_of_the_database_shrinks_after_a_large_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1 << 20
    assert int(sqlite._WRITER_PRAGMAS["journal_size_limit"]) <= 64 << 20
    monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "journal_size_limit", str(limit))
    path = tmp_path / "bitinglip.db"

    async def run() -> None:
        db = await Database.open(path)
        try:
            async with db.write() as session:
                await session.execute(text("CREATE TABLE large (value BLOB)"))
                await session.execute(text("INSERT INTO large VALUES (randomblob(8388608))"))
            for _ in range(2):  # the first starts a new log
                async with db.write() as session:
                    await session.execute(text("DELETE FROM large"))
            assert path.with_name(path.name + "-wal").stat().st_size <= limit
        finally:
            await db.close()

    asyncio.run(run())


def _open(path: Path) -> None:
    async def run() -> None:
        await (await Database.open(path)).close()

    asyncio.run(run())


def _vacuum_mode(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA auto_vacuum").fetchone()[0])


def test_database_gives_the_space_of_deleted_rows_back(tmp_path: Path) -> None:
    path = tmp_path / "bitinglip.db"

    async def run() -> None:
        database = await Database.open(path)
        async with database.write() as session:
            await session.execute(text("CREATE TABLE large (x BLOB)"))
            await session.execute(text("INSERT INTO large VALUES (zeroblob(40000000))"))
        async with database.write() as session:
            await session.execute(text("DELETE FROM large"))
        for _ in range(3):
            await database.shrink()
        await database.close()

    asyncio.run(run())
    assert path.stat().st_size < 3_000_000


def test_database_of_an_older_version_can_shrink_too(tmp_path: Path) -> None:
    path = tmp_path / "bitinglip.db"
    upgrade(path, "0004")
    assert _vacuum_mode(path) == 0
    _open(path)
    assert _vacuum_mode(path) == 2
