"""Files that clients keep: how much a key may have, for how long, and what a crash leaves."""

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import insert, select, update

from bitinglip.batches.files import ClientFiles
from bitinglip.db.database import Database
from bitinglip.db.tables import ClientFile
from bitinglip.errors import DiskFull, FileGone, InvalidRequest, PayloadTooLarge
from bitinglip.results.uploads import ReceivedFile


def using(
    tmp_path: Path, act: Callable[[ClientFiles, Database], Awaitable[None]], **options: Any
) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        try:
            async with asyncio.timeout(60):
                given = {"retention": 60, "max_bytes": 40_000, **options}
                await act(ClientFiles(db, tmp_path / "batches", **given), db)
        finally:
            await db.close()

    asyncio.run(run())


async def keep(
    files: ClientFiles, size: int = 10, key_id: str = "k", lifetime: int | None = None
) -> ClientFile:
    received = ReceivedFile(files.folder.parent / "received", "owner", size)
    received.path.write_bytes(b"x" * size)
    return await files.keep(received, key_id, "name", lifetime)


def test_file_bounds_hold_for_a_key_and_for_all(tmp_path: Path) -> None:
    async def act(files: ClientFiles, _db: Database) -> None:
        await keep(files, 10_000)
        with pytest.raises(PayloadTooLarge, match="this key"):
            await keep(files, 10_000)
        await keep(files, 12_000, "other")
        with pytest.raises(DiskFull):
            await keep(files, 10_000, "third")
        with pytest.raises(InvalidRequest, match="empty"):
            await keep(files, 0, "third")
        assert len(os.listdir(files.folder)) == 2

    using(tmp_path, act)


def test_file_of_results_has_its_size_of_now_and_is_removed(tmp_path: Path) -> None:
    async def act(files: ClientFiles, _db: Database) -> None:
        made = await keep(files, 10)
        files.path("file-out").write_bytes(b"one")
        await files.register("file-out", "k", "out")
        files.path("file-out").write_bytes(b"one two")
        await files.register("file-out", "k", "out")
        assert ((await files.get("file-out")).bytes, made.bytes) == (7, 10)
        await files.delete("file-out")
        with pytest.raises(FileGone):
            await files.get("file-out")
        assert os.listdir(files.folder) == [files.path(made.id).name]

    using(tmp_path, act)


def test_file_count_of_a_key_is_bounded_by_what_rows_take(tmp_path: Path) -> None:
    async def act(files: ClientFiles, _db: Database) -> None:
        for _ in range(4):
            await keep(files, 1)
        with pytest.raises(PayloadTooLarge):
            await keep(files, 1)

    using(tmp_path, act)


def test_file_that_has_expired_is_removed_unless_a_batch_needs_it(tmp_path: Path) -> None:
    async def act(files: ClientFiles, db: Database) -> None:
        old, needed, short, kept = [
            await keep(files, key_id=name, lifetime=3600) for name in ("a", "b", "c", "d")
        ]
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        async with db.write() as session:
            own = update(ClientFile).where(ClientFile.id.in_([old.id, needed.id]))  # type: ignore[attr-defined]
            await session.execute(own.values(created_at=long_ago))
            own = update(ClientFile).where(ClientFile.id == short.id)  # type: ignore[arg-type]
            await session.execute(own.values(expires_at=long_ago))
        for each in (old, needed, short):
            with pytest.raises(FileGone):
                await files.get(each.id)
        await files.clean(lambda file_id: file_id == needed.id)
        assert set(os.listdir(files.folder)) == {needed.id, kept.id}
        listed = await files.list(key_id=None, purpose=None, after=None, most=9, newest=True)
        assert [each.id for each in listed] == [kept.id]

    using(tmp_path, act)


@pytest.mark.sqlite
def test_files_that_expire_together_are_removed_whatever_their_number(tmp_path: Path) -> None:
    """A statement has room for so many values, and an upload says itself when it expires."""

    async def act(files: ClientFiles, db: Database) -> None:
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        row = {"key_id": "k", "purpose": "batch", "filename": "f", "bytes": 1}
        rows = [{**row, "id": f"file-{n}", "created_at": long_ago} for n in range(1200)]
        async with db.write() as session:
            raw = await (await session.connection()).get_raw_connection()
            driver: Any = raw.driver_connection
            limit = (sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)  # of a plain SQLite: 32,766
            await driver._execute(driver._conn.setlimit, *limit)
            await session.execute(insert(ClientFile), rows)
        await files.clean(lambda file_id: file_id == "file-7")
        async with db.read() as session:
            assert list(await session.scalars(select(ClientFile.id))) == ["file-7"]

    using(tmp_path, act)


def test_file_that_a_crash_has_left_is_removed(tmp_path: Path) -> None:
    async def act(files: ClientFiles, _db: Database) -> None:
        await keep(files)
        for name, age in (("file-lost", 600), ("file-open", 600), ("file-new", 0)):
            path = files.path(name)
            path.write_bytes(b"x")
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
        await files.clean(lambda file_id: file_id == "file-open")
        assert {"file-open", "file-new"} <= set(os.listdir(files.folder))
        assert "file-lost" not in os.listdir(files.folder)

    using(tmp_path, act)
