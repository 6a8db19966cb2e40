"""Retention by a wall clock that jumps: nothing expires before it has lived its time."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bitinglip.db.database import Database
from bitinglip.db.retention import Retention
from bitinglip.disk_space import DiskSpace
from bitinglip.results.files import Files
from bitinglip.scheduling.event_log import EventLog
from bitinglip.tasks.store import TaskStore
from bitinglip.wire.response import inference_response
from tests.support.jobs import text_job
from workers import protocol

DAY = 86_400.0
START = 1_800_000_000.0


class Clocks:
    """Simulates a wall clock that a test sets, and one that only goes on."""

    def __init__(self) -> None:
        self.jump = 0.0
        self.passed = 0.0
        self.retention = Retention(DAY, lambda: START + self.passed + self.jump, self.steady)

    def steady(self) -> float:
        return 1000.0 + self.passed

    def expired(self, stamp: float) -> bool:
        return datetime.fromtimestamp(stamp, UTC) < self.retention.oldest()


def test_retention_follows_the_wall_clock() -> None:
    clocks = Clocks()
    assert not clocks.expired(START - DAY + 1)
    clocks.passed = 2.0
    assert clocks.expired(START - DAY + 1)


def test_retention_does_not_believe_a_clock_that_jumped_ahead() -> None:
    clocks = Clocks()
    before = START - 100  # made before the jump
    clocks.jump = 30 * DAY
    assert not clocks.expired(before)
    clocks.passed = DAY - 200
    assert not clocks.expired(before)
    clocks.passed = DAY - 50
    assert clocks.expired(before)  # it has lived its day


def test_retention_believes_the_new_time_once_all_from_before_has_expired() -> None:
    clocks = Clocks()
    clocks.jump = 30 * DAY
    clocks.expired(START)
    after = START + 30 * DAY + 10  # made after the jump
    clocks.passed = DAY + 5
    assert not clocks.expired(after)
    clocks.passed = DAY + 20
    assert clocks.expired(after)


def test_retention_after_a_jump_that_is_taken_back_is_as_before() -> None:
    clocks = Clocks()
    clocks.jump = DAY
    assert not clocks.expired(START - 100)
    clocks.jump = 0.0
    clocks.passed = 10.0
    assert clocks.retention.now() == START + 10
    clocks.jump = DAY
    assert not clocks.expired(START - 100)


def test_retention_after_a_jump_back_keeps_longer() -> None:
    clocks = Clocks()
    clocks.jump = -DAY
    clocks.passed = DAY
    assert not clocks.expired(START - 100)
    clocks.jump = 0.0  # corrected: a jump ahead of what was believed
    assert not clocks.expired(START - 100)


def test_cleanup_after_a_clock_jump_keeps_tasks_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "b.db")
        folder = tmp_path / "files"
        folder.mkdir()
        rows = TaskStore(
            db,
            inference_response,
            retention=DAY,
            max_bytes=10**9,
            space=DiskSpace(tmp_path, 0),
        )
        files = Files(db, folder, retention=DAY, max_bytes=10**9)
        job = text_job()
        event_log = EventLog(job)
        await rows.add(job)
        event_log.put(protocol.Cancelled(id=job.id))
        await rows.end(event_log)
        (folder / f"{job.id}-0.png").write_bytes(b"x")
        real = datetime.now(UTC).timestamp()
        monkeypatch.setattr("time.time", lambda: real + 30 * DAY)
        await rows.expire()
        await files.clean(lambda _: False)
        assert await rows.get(job.id) is not None
        assert len(list(folder.iterdir())) == 1
        await db.close()

    asyncio.run(run())
