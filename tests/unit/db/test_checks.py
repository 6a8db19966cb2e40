"""The check of the database, which any caller with the scope may ask for."""

import asyncio
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from bitinglip.db.database import Database
from bitinglip.errors import DatabaseUnavailable


def test_checks_that_come_together_are_one_and_leave_a_reader_free(tmp_path: Path) -> None:
    seen: list[str] = []

    def note(_c: Any, _cursor: Any, sql: str, _v: Any, _context: Any, _many: bool) -> None:
        seen.append(sql)

    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        event.listen(Engine, "before_cursor_execute", note)
        try:
            await asyncio.gather(*(db.check() for _ in range(500)))
            assert len(seen) == 1
            await db.check()
            assert len(seen) == 2  # a later one looks again
        finally:
            event.remove(Engine, "before_cursor_execute", note)
            await db.close()

    asyncio.run(run())


def test_check_without_waiters_ends_and_another_one_answers(tmp_path: Path) -> None:
    path = tmp_path / "bitinglip.db"

    async def run() -> None:
        db = await Database.open(path)
        try:
            hasty = [asyncio.create_task(db.check()) for _ in range(3)]
            await asyncio.sleep(0)
            for task in hasty:
                task.cancel()
            await asyncio.gather(*hasty, return_exceptions=True)
            await db.check()
            async with db.write() as session:
                await (await session.connection()).exec_driver_sql("DROP TABLE alembic_version")
            answers = await asyncio.gather(*(db.check() for _ in range(3)), return_exceptions=True)
            assert [type(answer) for answer in answers] == [DatabaseUnavailable] * 3
        finally:
            await db.close()

    asyncio.run(run())
