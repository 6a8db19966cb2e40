"""Write-behind: each change is written once, whatever becomes of the flush that took it."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bitinglip.db.database import Database
from bitinglip.db.write_behind import WriteBehind
from bitinglip.errors import DatabaseUnavailable

COUNT = "UPDATE counted SET number = number + {}"


class Counted:
    """Adds its count to a number in the database."""

    def __init__(self) -> None:
        self.pending = 0
        self.writing = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    def take(self) -> "Taken | None":
        taken, self.pending = self.pending, 0
        return Taken(self, taken) if taken else None


class Taken:
    def __init__(self, part: Counted, count: int) -> None:
        self._part, self._count = part, count

    async def write(self, session: AsyncSession) -> None:
        self._part.writing.set()
        await self._part.go_on.wait()
        connection = await session.connection()
        await connection.exec_driver_sql(COUNT.format(self._count))

    def give_back(self) -> None:
        self._part.pending += self._count


async def opened(path: Path) -> Database:
    db = await Database.open(path / "db")
    await run(db, "CREATE TABLE counted (number INTEGER)", "INSERT INTO counted VALUES (0)")
    return db


async def run(db: Database, *statements: str) -> None:
    async with db.write() as session:
        connection = await session.connection()
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def number(db: Database) -> int:
    async with db.read() as session:
        connection = await session.connection()
        return int((await connection.exec_driver_sql("SELECT number FROM counted")).scalar_one())


def test_write_behind_of_a_cancelled_flush_is_written_once(tmp_path: Path) -> None:
    async def flushes() -> None:
        db = await opened(tmp_path)
        part = Counted()
        write_behind = WriteBehind(db, part)
        part.pending = 5
        part.go_on.clear()
        first = asyncio.create_task(write_behind.flush())
        await part.writing.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        part.pending += 2
        part.go_on.set()
        await write_behind.flush()
        await write_behind.flush()
        assert (await number(db), part.pending) == (7, 0)
        await db.close()

    asyncio.run(flushes())


@pytest.mark.sqlite
def test_write_behind_keeps_what_could_not_be_written(tmp_path: Path) -> None:
    async def flushes() -> None:
        db = await opened(tmp_path)
        part, other = Counted(), Counted()
        write_behind = WriteBehind(db, part, other)
        part.pending, other.pending = 1, 10
        await run(db, "PRAGMA query_only = 1")
        with pytest.raises(DatabaseUnavailable):
            await write_behind.flush()
        assert (part.pending, other.pending) == (1, 10)
        await run(db, "PRAGMA query_only = 0")
        await asyncio.gather(*(write_behind.flush() for _ in range(3)))
        assert await number(db) == 11
        await db.close()

    asyncio.run(flushes())
