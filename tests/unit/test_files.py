"""Files that tasks made: who may fetch them, for how long, and what is left on the disk."""

import asyncio
import base64
import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlmodel import update

from bitinglip.db.database import Database
from bitinglip.db.tables import StoredFile
from bitinglip.errors import DiskFull, FileGone
from bitinglip.results.files import PREFIX, Files
from bitinglip.scheduling.inbox import Inbox
from bitinglip.scheduling.job import ImageJob
from bitinglip.wire.task import inference_response
from workers import protocol

PICTURE = b"not quite a picture"


def using(
    tmp_path: Path, act: Callable[[Files, Database], Awaitable[None]], **options: Any
) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        folder = tmp_path / "files"
        folder.mkdir()
        options_of_all = {"retention": 60, "max_bytes": 10**6, **options}
        try:
            async with asyncio.timeout(20):
                await act(Files(db, folder, **options_of_all), db)
        finally:
            await db.close()

    asyncio.run(run())


def drawn(files: Files, count: int = 1, output: Any = "url", age: float = 0.0) -> Inbox:
    """A job that has made so many pictures, which are on the disk."""
    job = ImageJob(
        model="m",
        key_id="k",
        prompt="p",
        width=64,
        height=64,
        steps=2,
        seeds=tuple(range(count)),
        folder=str(files.folder),
        output=output,
    )
    inbox = Inbox(job)
    for index in range(count):
        path = files.folder / protocol.picture_name(job.id, index, "png")
        path.write_bytes(PICTURE)
        os.utime(path, (time.time() - age,) * 2)
    picture = protocol.Picture(width=64, height=64, seed=0, format="png", bytes=len(PICTURE))
    inbox.put(protocol.Drawn(id=job.id, pictures=(picture,) * count, steps=2, scheduler="ddim"))
    return inbox


def name_of(inbox: Inbox, index: int = 0) -> str:
    return protocol.picture_name(inbox.job.id, index, "png")


def nothing_is_open(_task: str) -> bool:
    return False


def test_a_kept_file_is_its_owners_until_it_expires(tmp_path: Path) -> None:
    async def act(files: Files, db: Database) -> None:
        inbox = drawn(files, 2)
        with pytest.raises(FileGone):
            await files.get(name_of(inbox))
        await files.keep(inbox)
        await files.keep(inbox)
        row = await files.get(name_of(inbox, 1))
        assert (row.key_id, row.media_type, row.kind) == ("k", "image/png", "image")
        assert files.path(row).read_bytes() == PICTURE
        async with db.write() as session:
            old = datetime.now(UTC) - timedelta(seconds=61)
            await session.execute(update(StoredFile).values(created_at=old))
        with pytest.raises(FileGone):
            await files.get(name_of(inbox))

    using(tmp_path, act)


@pytest.mark.parametrize("name", ["../bitinglip.db", "nothing", "", "task-1-0.png/../x"])
def test_no_name_leads_elsewhere(tmp_path: Path, name: str) -> None:
    async def act(files: Files, _db: Database) -> None:
        with pytest.raises(FileGone):
            await files.get(name)

    using(tmp_path, act)


def test_an_answer_holds_the_bytes_or_where_they_are(tmp_path: Path) -> None:
    async def act(files: Files, _db: Database) -> None:
        inbox = drawn(files, output="b64")
        [image] = (await files.fill(inference_response(inbox)))["result"]["images"]
        assert base64.b64decode(msgspec.json.decode(image["b64"])) == PICTURE
        assert "file" not in image
        (files.folder / name_of(inbox)).unlink()
        [image] = (await files.fill(inference_response(inbox)))["result"]["images"]
        assert image["b64"] is None
        inbox = drawn(files)
        [image] = (await files.fill(inference_response(inbox)))["result"]["images"]
        assert image["url"] == PREFIX + name_of(inbox)

    using(tmp_path, act)


def test_what_nobody_may_fetch_is_removed_unless_its_task_is_open(tmp_path: Path) -> None:
    async def act(files: Files, _db: Database) -> None:
        kept, new = drawn(files, age=500), drawn(files)
        answered, running = drawn(files, age=500), drawn(files, age=500)
        await files.keep(kept)
        await files.clean(lambda task: task == running.job.id)
        left = {path.name for path in files.folder.iterdir()}
        assert left == {name_of(kept), name_of(new), name_of(running)}
        assert name_of(answered) not in left

    using(tmp_path, act)


def test_the_oldest_go_when_there_are_too_many_bytes(tmp_path: Path) -> None:
    async def act(files: Files, _db: Database) -> None:
        inboxes = [drawn(files, age=500) for _ in range(3)]
        for inbox in inboxes:
            await files.keep(inbox)
        await files.clean(nothing_is_open)
        left = {path.name for path in files.folder.iterdir()}
        assert left == {name_of(inbox) for inbox in inboxes[1:]}
        with pytest.raises(FileGone):
            await files.get(name_of(inboxes[0]))

    using(tmp_path, act, max_bytes=2 * len(PICTURE))


def test_expired_rows_take_their_files_along(tmp_path: Path) -> None:
    async def act(files: Files, db: Database) -> None:
        inbox = drawn(files, age=500)
        await files.keep(inbox)
        async with db.write() as session:
            old = datetime.now(UTC) - timedelta(seconds=61)
            await session.execute(update(StoredFile).values(created_at=old))
        await files.clean(nothing_is_open)
        assert not list(files.folder.iterdir())

    using(tmp_path, act)


def test_an_upload_is_written_once_or_refused(tmp_path: Path) -> None:
    async def act(files: Files, _db: Database) -> None:
        path = await files.receive("task-1-image", PICTURE)
        assert path.read_bytes() == PICTURE
        path.unlink()
        files.folder.rmdir()
        with pytest.raises(DiskFull):
            await files.receive("task-2-image", PICTURE)

    using(tmp_path, act)
