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
from sqlmodel import select, update

from bitinglip.db.database import Database
from bitinglip.db.tables import StoredFile
from bitinglip.errors import FileGone
from bitinglip.results.files import PREFIX, Files
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.wire.response import inference_response
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
            async with asyncio.timeout(60):
                await act(Files(db, folder, **options_of_all), db)
        finally:
            await db.close()

    asyncio.run(run())


def drawn(
    files: Files, count: int = 1, output: Any = "url", age: float = 0.0, key_id: str = "k"
) -> EventLog:
    """Return a job that has made so many pictures, which are on the disk."""
    work = protocol.ImageJob(
        id=new_task_id(),
        prompt="p",
        width=64,
        height=64,
        steps=2,
        seeds=tuple(range(count)),
        folder=str(files.folder),
    )
    job = Job(work=work, model="m", key_id=key_id, output=output)
    event_log = EventLog(job)
    for index in range(count):
        path = files.folder / protocol.image_file_name(job.id, index, "png")
        path.write_bytes(PICTURE)
        os.utime(path, (time.time() - age,) * 2)
    picture = protocol.ImageFile(width=64, height=64, seed=0, format="png", bytes=len(PICTURE))
    event_log.put(
        protocol.ImageDone(id=job.id, images=(picture,) * count, steps=2, scheduler="ddim")
    )
    return event_log


def name_of(event_log: EventLog, index: int = 0) -> str:
    return protocol.image_file_name(event_log.job.id, index, "png")


def nothing_is_open(_task: str) -> bool:
    return False


def test_file_is_its_owner_s_until_it_expires(tmp_path: Path) -> None:
    async def act(files: Files, db: Database) -> None:
        event_log = drawn(files, 2)
        with pytest.raises(FileGone):
            await files.get(name_of(event_log))
        await files.register(event_log)
        await files.register(event_log)
        row = await files.get(name_of(event_log, 1))
        assert (row.key_id, row.media_type, row.kind) == ("k", "image/png", "image")
        assert files.path(row).read_bytes() == PICTURE
        async with db.write() as session:
            old = datetime.now(UTC) - timedelta(seconds=61)
            await session.execute(update(StoredFile).values(created_at=old))
        with pytest.raises(FileGone):
            await files.get(name_of(event_log))

    using(tmp_path, act)


@pytest.mark.parametrize("name", ["../bitinglip.db", "nothing", "", "task-1-0.png/../x"])
def test_file_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    async def act(files: Files, _db: Database) -> None:
        with pytest.raises(FileGone):
            await files.get(name)

    using(tmp_path, act)


def test_answer_holds_the_bytes_of_files_or_their_urls(tmp_path: Path) -> None:
    async def act(files: Files, _db: Database) -> None:
        event_log = drawn(files, output="b64")
        [image] = (await files.inline_bytes(inference_response(event_log)))["result"]["images"]
        assert base64.b64decode(msgspec.json.decode(image["b64"])) == PICTURE
        assert "file" not in image
        (files.folder / name_of(event_log)).unlink()
        [image] = (await files.inline_bytes(inference_response(event_log)))["result"]["images"]
        assert image["b64"] is None
        event_log = drawn(files)
        [image] = (await files.inline_bytes(inference_response(event_log)))["result"]["images"]
        assert image["url"] == PREFIX + name_of(event_log)

    using(tmp_path, act)


def test_cleanup_removes_unregistered_files_unless_their_task_is_open(tmp_path: Path) -> None:
    async def act(files: Files, _db: Database) -> None:
        kept, new = drawn(files, age=500), drawn(files)
        answered, running = drawn(files, age=500), drawn(files, age=500)
        await files.register(kept)
        await files.clean(lambda task: task == running.job.id)
        left = {path.name for path in files.folder.iterdir()}
        assert left == {name_of(kept), name_of(new), name_of(running)}
        assert name_of(answered) not in left

    using(tmp_path, act)


def test_cleanup_removes_the_oldest_files_beyond_the_bound(tmp_path: Path) -> None:
    async def act(files: Files, _db: Database) -> None:
        event_logs = [drawn(files, age=500) for _ in range(3)]
        for event_log in event_logs:
            await files.register(event_log)
        await files.clean(nothing_is_open)
        left = {path.name for path in files.folder.iterdir()}
        assert left == {name_of(event_log) for event_log in event_logs[1:]}
        with pytest.raises(FileGone):
            await files.get(name_of(event_logs[0]))

    using(tmp_path, act, max_bytes=2 * len(PICTURE))


def test_cleanup_makes_a_folder_again_that_was_removed(tmp_path: Path) -> None:
    async def act(files: Files, _db: Database) -> None:
        files.folder.rmdir()
        await files.clean(nothing_is_open)
        assert files.folder.is_dir()

    using(tmp_path, act)


def test_cleanup_removes_files_of_expired_rows(tmp_path: Path) -> None:
    async def act(files: Files, db: Database) -> None:
        event_log = drawn(files, age=500)
        await files.register(event_log)
        async with db.write() as session:
            old = datetime.now(UTC) - timedelta(seconds=61)
            await session.execute(update(StoredFile).values(created_at=old))
        await files.clean(nothing_is_open)
        assert not list(files.folder.iterdir())

    using(tmp_path, act)


def test_files_beyond_the_bound_are_taken_from_the_key_that_holds_most(tmp_path: Path) -> None:
    async def act(files: Files, db: Database) -> None:
        small = drawn(files, key_id="small")
        await files.register(small)
        large = [drawn(files, key_id="large") for _ in range(5)]
        for event_log in large:
            await files.register(event_log)
        await files.clean(nothing_is_open)
        async with db.read() as session:
            left = set(await session.scalars(select(StoredFile.task_id)))
        assert left == {small.job.id, large[3].job.id, large[4].job.id}

    using(tmp_path, act, max_bytes=3 * len(PICTURE))


def test_file_that_is_registered_while_others_are_removed_stays(tmp_path: Path) -> None:
    """A row that comes after the files were listed is seen: the names are read first."""

    async def act(files: Files, _db: Database) -> None:
        event_log = drawn(files, age=500)

        def register_now(_task_id: str) -> bool:
            asyncio.run_coroutine_threadsafe(files.register(event_log), loop).result(60)
            return False

        loop = asyncio.get_running_loop()
        await files.clean(register_now)
        assert list(files.folder.iterdir())

    using(tmp_path, act)
