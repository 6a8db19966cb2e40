"""Batches keep the files that they need."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from sqlmodel import update

from bitinglip.access.credentials import Credential
from bitinglip.batches.batches import Batches
from bitinglip.batches.files import ClientFiles
from bitinglip.batches.rows import BatchRows, KeptBatch
from bitinglip.db.database import Database
from bitinglip.db.tables import ClientFile
from bitinglip.disk_space import DiskSpace
from bitinglip.results.uploads import ReceivedFile
from bitinglip.settings import Settings
from bitinglip.wire.batches import Batch

NONE = cast("Any", None)


def test_batch_that_begins_during_a_clean_up_keeps_its_file(tmp_path: Path) -> None:
    async def clean(db: Database) -> None:
        rows, files = (
            BatchRows(db, retention=60),
            ClientFiles(db, tmp_path / "batches", retention=60, max_bytes=40_000),
        )
        batches = Batches(rows, files, NONE, NONE, Settings(), DiskSpace(tmp_path, 0))
        received = ReceivedFile(tmp_path / "received", "owner", 1)
        received.path.write_bytes(b"x")
        file_id = (await files.keep(received, "k", "name", 3600)).id
        async with db.write() as session:
            past = datetime.now(UTC) - timedelta(hours=1)
            own = update(ClientFile).where(ClientFile.id == file_id)  # type: ignore[arg-type]
            await session.execute(own.values(expires_at=past))

        async def begin() -> None:
            async with db.write():  # between the batches' rows and those of files
                batch = Batch(
                    id="batch_1",
                    endpoint="/v1/completions",
                    input_file_id=file_id,
                    completion_window="24h",
                    status="in_progress",
                    created_at=0,
                    expires_at=1,
                )
                batches._add(KeptBatch(batch, Credential("k", 1)))

        async with db.write():
            cleaning = asyncio.create_task(batches.clean())
            beginning = asyncio.create_task(begin())
            await asyncio.sleep(0)
        await asyncio.gather(cleaning, beginning)
        assert files.path(file_id).exists()

    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        try:
            async with asyncio.timeout(60):
                await clean(db)
        finally:
            await db.close()

    asyncio.run(run())
