"""Limits over a restart: what was taken stays taken, whatever the clocks do."""

import asyncio
from pathlib import Path

import pytest
from sqlmodel import select

from bitinglip.access.limits.checkpoint import Checkpoint
from bitinglip.access.limits.gcra import SECOND, Rate
from bitinglip.access.limits.store import Cell, MemoryStore
from bitinglip.db.database import Database
from bitinglip.db.files import DatabaseError
from bitinglip.db.tables import LimitCell
from bitinglip.db.write_behind import WriteBehind
from bitinglip.errors import DatabaseUnavailable

HOUR = 3600 * SECOND
CELL = Cell("k:hour", Rate(10, HOUR, 10))
TODAY = 1_800_000_000 * SECOND


class Run:
    """Plays one run of a server: its clock starts at zero, the calendar goes on."""

    def __init__(self, db: Database, *, here: int = 5 * HOUR, today: int = TODAY) -> None:
        self.here, self.today, self.store = here, today, MemoryStore()
        self.checkpoint = Checkpoint(
            db, self.store, clock=lambda: self.here, calendar=lambda: self.today
        )
        self.write_behind = WriteBehind(db, self.checkpoint)

    def take(self, units: int = 1, cell: Cell = CELL) -> int:
        """Take units one by one; return the wait of the last."""
        return [self.store.take_now([cell], self.here).wait for _ in range(units)][-1]

    def left(self) -> int:
        return self.store.take_now([CELL], self.here, cost=0).readings[0].remaining


async def rows(db: Database) -> dict[str, int]:
    async with db.read() as session:
        return {row.id: row.full_at for row in await session.scalars(select(LimitCell))}


def test_limits_of_the_last_run_hold_in_the_next(tmp_path: Path) -> None:
    async def runs() -> None:
        db = await Database.open(tmp_path / "db")
        first = Run(db)
        first.take(10)
        await first.write_behind.flush()
        second = Run(db, here=17, today=TODAY + 720 * SECOND)  # two have come back meanwhile
        await second.checkpoint.load()
        assert second.left() == 2
        assert second.take(3) == 360 * SECOND
        await second.write_behind.flush()
        third = Run(db, here=HOUR, today=TODAY + 720 * SECOND)
        await third.checkpoint.load()
        assert third.left() == 0
        later = Run(db, today=TODAY + 2 * HOUR)
        await later.checkpoint.load()
        assert later.left() == 10
        later.take()
        await later.write_behind.flush()
        assert await rows(db) == {"k:hour": later.today + 360 * SECOND}
        await db.close()

    asyncio.run(runs())


def test_limits_are_held_for_an_hour_at_most_if_the_calendar_went_back(tmp_path: Path) -> None:
    async def runs() -> None:
        db = await Database.open(tmp_path / "db")
        first = Run(db)
        first.take(10)
        await first.write_behind.flush()
        second = Run(db, today=TODAY - 1000 * HOUR)
        await second.checkpoint.load()
        assert (second.left(), second.take()) == (0, 360 * SECOND)
        await db.close()

    asyncio.run(runs())


@pytest.mark.sqlite  # another database refuses the damage
def test_limits_in_a_damaged_table_end_in_one_clear_message(tmp_path: Path) -> None:
    async def runs() -> None:
        db = await Database.open(tmp_path / "db")
        for damage in (
            "INSERT INTO limit_cells VALUES ('k:hour', 'soon')",
            "ALTER TABLE limit_cells RENAME COLUMN full_at TO fall_at",
        ):
            async with db.write() as session:
                await (await session.connection()).exec_driver_sql(damage)
            with pytest.raises(DatabaseError, match="the table of limits is damaged"):
                await Run(db).checkpoint.load()
        await db.close()

    asyncio.run(runs())


def test_limits_that_are_nearly_full_cost_no_write(tmp_path: Path) -> None:
    async def runs() -> None:
        db = await Database.open(tmp_path / "db")
        run = Run(db)
        run.take(cell=Cell("k:other", Rate(3000, 60 * SECOND, 3000)))
        await run.write_behind.flush()
        assert await rows(db) == {}
        for number in range(1200):
            run.take(cell=Cell(f"k{number}:hour", CELL.rate))
        await run.write_behind.flush()
        assert len(await rows(db)) == 1200
        await db.close()

    asyncio.run(runs())


def test_limits_that_were_given_back_are_whole_after_a_restart(tmp_path: Path) -> None:
    async def runs() -> None:
        db = await Database.open(tmp_path / "db")
        first = Run(db)
        first.take(10)
        await first.write_behind.flush()
        first.store.refund([CELL], cost=10)
        await first.write_behind.flush()
        assert await rows(db) == {}
        first.take(10)
        await first.write_behind.flush()
        second = Run(db)
        await second.checkpoint.load()
        assert second.left() == 0
        second.store.refund([CELL], cost=10)  # by a task of the last run, say
        await second.write_behind.flush()
        assert await rows(db) == {}
        await db.close()

    asyncio.run(runs())


@pytest.mark.sqlite  # by a pragma of its own
def test_limits_that_could_not_be_written_are_written_by_the_next_flush(tmp_path: Path) -> None:
    async def runs() -> None:
        path = tmp_path / "db"
        db = await Database.open(path)
        run = Run(db)
        run.take(10)
        async with db.write() as session:
            connection = await session.connection()
            await connection.exec_driver_sql("PRAGMA query_only = 1")
        with pytest.raises(DatabaseUnavailable):
            await run.write_behind.flush()
        async with db.write() as session:
            connection = await session.connection()
            await connection.exec_driver_sql("PRAGMA query_only = 0")
        await run.write_behind.flush()
        assert await rows(db) == {"k:hour": TODAY + HOUR}
        await db.close()

    asyncio.run(runs())
