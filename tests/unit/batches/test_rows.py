"""Batches in the database: ended ones go with time, or where they hold too much."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlmodel import update

from bitinglip.access.credentials import Credential
from bitinglip.batches import rows as module
from bitinglip.batches.rows import BatchRows, KeptBatch
from bitinglip.db.database import Database
from bitinglip.db.tables import StoredBatch
from bitinglip.wire.batches import Batch


def using(tmp_path: Path, act: Callable[[BatchRows, Database], Awaitable[None]]) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        try:
            async with asyncio.timeout(60):
                await act(BatchRows(db, retention=60), db)
        finally:
            await db.close()

    asyncio.run(run())


def made(name: str, key_id: str = "k", status: str = "completed") -> KeptBatch:
    batch = Batch(
        id=name,
        endpoint="/v1/completions",
        input_file_id="file-x",
        completion_window="24h",
        status=status,
        created_at=0,
        expires_at=1,
    )
    return KeptBatch(batch, Credential(key_id, 3, "token"))


def test_batch_is_read_as_it_was_saved(tmp_path: Path) -> None:
    async def act(rows: BatchRows, _db: Database) -> None:
        kept = made("a", status="validating")
        await rows.save(kept)
        kept.batch.status = "in_progress"
        await rows.save(kept)
        (found,) = await rows.open()
        assert (found.batch, found.credential) == (kept.batch, kept.credential)

    using(tmp_path, act)


def test_batch_that_has_ended_is_removed_in_time(tmp_path: Path) -> None:
    async def act(rows: BatchRows, db: Database) -> None:
        for each in (made("old"), made("new"), made("open", status="in_progress")):
            await rows.save(each)
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        async with db.write() as session:
            own = update(StoredBatch).where(StoredBatch.id == "old")  # type: ignore[arg-type]
            await session.execute(own.values(ended_at=long_ago))
        await rows.clean()
        found = await rows.list(key_id=None, after=None, most=9)
        assert [each.batch.id for each in found] == ["open", "new"]

    using(tmp_path, act)


def test_batches_of_the_key_that_holds_most_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(rows: BatchRows, _db: Database) -> None:
        for number in range(8):
            await rows.save(made(f"many-{number}", "busy"))
        await rows.save(made("one", "other"))
        await rows.clean()
        found = {each.batch.id for each in await rows.list(key_id=None, after=None, most=9)}
        assert {"one", "many-7"} <= found
        assert "many-0" not in found

    monkeypatch.setattr(module, "MOST_BYTES", 5000)
    using(tmp_path, act)


@pytest.mark.parametrize("spoiled", [{"batch": b'{"id": 7}'}, {"credential": b"\xc1"}])
def test_batch_of_another_version_ends_no_server(tmp_path: Path, spoiled: dict[str, bytes]) -> None:
    async def act(rows: BatchRows, db: Database) -> None:
        own, other = (BatchRows(db, retention=60, owner=name) for name in ("own", "other"))
        for name in ("bad", "good"):
            await other.save(made(name, status="in_progress"))
        async with db.write() as session:
            bad = update(StoredBatch).where(StoredBatch.id == "bad")  # type: ignore[arg-type]
            await session.execute(bad.values(**spoiled))
        lists = [await own.elsewhere(), await own.list(key_id=None, after=None, most=9)]
        lists += [await own.take_up(), await own.open(), await rows.open()]
        assert [[each.batch.id for each in found] for found in lists] == [["good"]] * 5
        assert await own.find("bad") is None

    using(tmp_path, act)
