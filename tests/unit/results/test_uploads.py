"""Uploads are bounded by key and in all, and go with their job."""

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bitinglip.disk_space import DiskSpace
from bitinglip.errors import DiskFull, QueueFull
from bitinglip.results.uploads import Uploads
from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.telemetry.health import Health
from tests.support.wait import until
from workers import protocol

FILE = b"x" * 40


def audio(folder: Path, key_id: str = "k") -> Job:
    name = new_task_id()
    work = protocol.TranscriptionJob(id=name, path=str(folder / f"{name}-file"), max_seconds=1)
    return Job(work=work, model="m", key_id=key_id)


def uploads_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def using(
    folder: Path,
    act: Callable[[Uploads], Awaitable[None]],
    *,
    min_free: int | None = 0,
    health: Health | None = None,
) -> None:
    async def run() -> None:
        async with asyncio.timeout(60):
            space = DiskSpace(folder.parent, min_free)
            await act(Uploads(folder, max_bytes=100, space=space, health=health))

    asyncio.run(run())


def test_upload_is_removed_when_its_job_is_over(tmp_path: Path) -> None:
    async def act(uploads: Uploads) -> None:
        job = audio(tmp_path)
        await uploads.save(job, {"path": FILE})
        assert [path.read_bytes() for path in uploads_in(tmp_path)] == [FILE]
        uploads.discard(job)
        uploads.discard(job)
        assert uploads.bytes == 0
        await until(lambda: not uploads_in(tmp_path))

    using(tmp_path, act)


def test_uploads_are_bounded_by_key_and_in_all(tmp_path: Path) -> None:
    async def act(uploads: Uploads) -> None:
        first = audio(tmp_path)
        await uploads.save(first, {"path": FILE})
        with pytest.raises(QueueFull, match="this key"):
            await uploads.save(audio(tmp_path), {"path": FILE})
        await uploads.save(audio(tmp_path, "other"), {"path": FILE})
        with pytest.raises(DiskFull):
            await uploads.save(audio(tmp_path, "third"), {"path": FILE})
        uploads.discard(first)
        await uploads.save(audio(tmp_path), {"path": FILE})

    using(tmp_path, act)


def test_upload_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    async def act(uploads: Uploads) -> None:
        with pytest.raises(DiskFull):
            await uploads.save(audio(tmp_path), {"path": FILE})
        assert uploads.bytes == 0
        assert not uploads_in(tmp_path)

    using(tmp_path, act, min_free=2**62)


def test_upload_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    async def act(uploads: Uploads) -> None:
        gone = tmp_path / "gone"
        with pytest.raises(DiskFull):
            await uploads.save(audio(gone), {"path": FILE})
        assert uploads.bytes == 0

    using(tmp_path, act)


def test_upload_goes_to_the_disk_as_it_comes_and_then_to_its_job(tmp_path: Path) -> None:
    async def act(uploads: Uploads) -> None:
        incoming = uploads.receive("k")
        file, other = incoming.new_file(), incoming.new_file()
        await incoming.write(file, b"ab")
        await incoming.write(other, b"c")
        await incoming.write(file, b"cd")
        assert (uploads.bytes, file.size) == (5, 4)
        assert {path.read_bytes() for path in uploads_in(tmp_path)} == {b"abcd", b"c"}
        os.utime(file.path, (1, 1))
        await uploads.clean(lambda _: False)  # a slow one is not a lost one
        job = audio(tmp_path)
        await uploads.save(job, {"path": file})
        incoming.close()
        incoming.close()
        await until(lambda: len(uploads_in(tmp_path)) == 1)
        assert uploads_in(tmp_path)[0].read_bytes() == b"abcd"
        assert uploads.bytes == 4
        uploads.discard(job)
        assert uploads.bytes == 0
        await until(lambda: not uploads_in(tmp_path))

    using(tmp_path, act)


def test_uploads_that_arrive_are_bounded_by_key_and_in_all(tmp_path: Path) -> None:
    async def act(uploads: Uploads) -> None:
        first, second, other = (uploads.receive(key) for key in ("k", "k", "other"))
        await first.write(first.new_file(), FILE)
        with pytest.raises(QueueFull, match="this key"):
            await second.write(second.new_file(), FILE)
        await other.write(other.new_file(), FILE)
        with pytest.raises(DiskFull):
            await other.write(other.new_file(), FILE)
        first.close()
        await second.write(second.new_file(), FILE)
        second.close()
        other.close()
        assert uploads.bytes == 0

    using(tmp_path, act)


def test_uploads_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"

    async def act(uploads: Uploads) -> None:
        job = audio(folder)
        await uploads.save(job, {"path": FILE})
        shutil.rmtree(folder)
        await uploads.clean(lambda _: True)
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.rmdir()
        incoming = uploads.receive("other")
        await incoming.write(incoming.new_file(), FILE)
        assert [path.read_bytes() for path in uploads_in(folder)] == [FILE]
        incoming.close()

    using(folder, act)


def test_disk_that_takes_no_uploads_degrades_the_server_until_it_does(tmp_path: Path) -> None:
    folder, health = tmp_path / "uploads", Health()
    folder.write_bytes(b"")  # nothing can be written below it

    async def act(uploads: Uploads) -> None:
        incoming = uploads.receive("k")
        with pytest.raises(DiskFull):
            await incoming.write(incoming.new_file(), FILE)
        incoming.close()
        assert "uploads" in health.problems()["task_manager"]
        folder.unlink()
        await uploads.save(audio(folder), {"path": FILE})
        assert not health.problems()

    using(folder, act, health=health)


def test_disk_without_room_for_uploads_degrades_the_server(tmp_path: Path) -> None:
    health = Health()

    async def act(uploads: Uploads) -> None:
        await uploads.clean(lambda _: False)
        assert "uploads" in health.problems()["task_manager"]

    using(tmp_path, act, min_free=2**62, health=health)


def test_uploads_that_a_crash_left_are_removed(tmp_path: Path) -> None:
    async def act(uploads: Uploads) -> None:
        lost, new = tmp_path / "task-lost-file", tmp_path / "task-new-file"
        open_ = tmp_path / "task-open-file"
        for path in (lost, new, open_):
            path.write_bytes(FILE)
        for path in (lost, open_):
            os.utime(path, (1, 1))
        await uploads.clean(lambda job_id: job_id == "task-open")
        assert set(uploads_in(tmp_path)) == {new, open_}

    using(tmp_path, act)


def test_upload_does_not_look_lost_because_the_clock_was_set_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(uploads: Uploads) -> None:
        new = tmp_path / "task-new-file"
        new.write_bytes(FILE)
        monkeypatch.setattr(time, "time", lambda: wall() + 1e6)
        await uploads.clean(lambda _: False)
        assert uploads_in(tmp_path) == [new]

    wall = time.time
    using(tmp_path, act)
