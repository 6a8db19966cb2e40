"""Batches that another server has taken up, since this one was taken for dead, are let go of."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from bitinglip.access.credentials import Credential
from bitinglip.access.keys import Caller
from bitinglip.access.scopes import Scope
from bitinglip.batches.batches import Batches
from bitinglip.batches.files import ClientFiles
from bitinglip.batches.rows import BatchRows, KeptBatch
from bitinglip.batches.run import Run, result_files
from bitinglip.db.database import Database
from bitinglip.disk_space import DiskSpace
from bitinglip.results.uploads import ReceivedFile
from bitinglip.settings import Settings
from bitinglip.wire.batches import Batch

CALLER = Caller("k", "k", "free", frozenset({Scope.TEXT}))


class Requests:
    """Is the batch's side of requests that never end."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def answer(self, *_: Any) -> None:
        self.asked.set()
        await asyncio.Event().wait()


def using(
    tmp_path: Path,
    act: Callable[[Batches, Run, BatchRows, Requests], Awaitable[None]],
) -> None:
    """Have a server with a batch of one line, and the rows of another that takes it up."""

    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        try:
            async with asyncio.timeout(60):
                late, other = (
                    BatchRows(db, retention=60, owner=each) for each in ("late", "other")
                )
                requests = Requests()
                files = ClientFiles(db, tmp_path / "batches", retention=60, max_bytes=40_000)
                batches = Batches(
                    late,
                    files,
                    cast("Any", requests),
                    lambda _: CALLER,
                    Settings(),
                    DiskSpace(tmp_path, 0),
                )
                kept = await _kept(files, tmp_path)
                await late.save(kept)
                await act(batches, batches._add(kept), other, requests)
                for name in result_files(kept.batch.id):
                    assert not files.path(name).exists()
        finally:
            await db.close()

    asyncio.run(run())


async def _kept(files: ClientFiles, folder: Path) -> KeptBatch:
    body = {"model": "m", "prompt": "p"}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": body}
    received = ReceivedFile(folder / "received", "owner", 1)
    received.path.write_text(json.dumps(line) + "\n")
    batch = Batch(
        id="batch_1",
        endpoint="/v1/completions",
        input_file_id=(await files.keep(received, "k", "name", 3600)).id,
        completion_window="24h",
        created_at=0,
        expires_at=1 << 40,
    )
    return KeptBatch(batch, Credential("k", 1))


def test_batch_that_another_server_took_up_is_not_begun(tmp_path: Path) -> None:
    async def act(_: Batches, run: Run, other: BatchRows, requests: Requests) -> None:
        assert len(await other.take_up()) == 1
        await run.run()
        assert not requests.asked.is_set()

    using(tmp_path, act)


def test_batch_that_another_server_took_up_as_it_ran_ends_at_once(tmp_path: Path) -> None:
    async def act(batches: Batches, run: Run, other: BatchRows, requests: Requests) -> None:
        running = asyncio.create_task(run.run())
        await requests.asked.wait()
        assert len(await other.take_up()) == 1
        await batches.drop_lost()
        await running

    using(tmp_path, act)


def test_batch_that_another_server_took_up_is_cancelled_there_only(tmp_path: Path) -> None:
    async def act(_: Batches, run: Run, other: BatchRows, requests: Requests) -> None:
        running = asyncio.create_task(run.run())
        await requests.asked.wait()
        assert len(await other.take_up()) == 1
        await run.cancel()
        await running
        found = await other.find("batch_1")
        assert found is not None
        assert found.batch.status == "in_progress"

    using(tmp_path, act)
