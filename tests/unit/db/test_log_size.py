"""The write-ahead log gives its room back after a transaction that was larger than usual."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from bitinglip.db import database
from bitinglip.db.database import Database


def test_log_of_the_database_shrinks_after_a_large_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1 << 20
    assert int(database._WRITER_PRAGMAS["journal_size_limit"]) <= 64 << 20
    monkeypatch.setitem(database._WRITER_PRAGMAS, "journal_size_limit", str(limit))
    path = tmp_path / "bitinglip.db"

    async def run() -> None:
        db = await Database.open(path)
        try:
            async with db.write() as session:
                await session.execute(text("CREATE TABLE large (value BLOB)"))
                await session.execute(text("INSERT INTO large VALUES (randomblob(8388608))"))
            for _ in range(2):  # the first begins the log anew
                async with db.write() as session:
                    await session.execute(text("DELETE FROM large"))
            assert path.with_name(path.name + "-wal").stat().st_size <= limit
        finally:
            await db.close()

    asyncio.run(run())
