"""Rows of usage: added to and never replaced, summed by what is asked for, removed when old."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from bitinglip.access.usage.amounts import Amounts
from bitinglip.access.usage.meter import Meter
from bitinglip.access.usage.quotas import Plans, parse_quotas
from bitinglip.access.usage.rows import GROUPS, UsageRows, Wanted
from bitinglip.db.database import Database
from bitinglip.db.files import DatabaseError
from bitinglip.db.tables import Usage
from bitinglip.db.write_behind import WriteBehind
from bitinglip.errors import DatabaseUnavailable
from bitinglip.settings.limits import Limits

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0
PLAN = Plans(Limits()).of("free", parse_quotas({"daily": {"tokens": 9}, "monthly": {"tokens": 9}}))


class Run:
    """Simulates one run of a server: what was counted before is in the database only."""

    def __init__(self, db: Database, now: float = NOON) -> None:
        self.now = now
        self.meter = Meter(lambda _key: PLAN, clock=lambda: self.now)
        self.rows = UsageRows(db, self.meter, retention=40 * DAY)
        self.write_behind = WriteBehind(db, self.rows)

    def charge(self, key: str = "k", model: str = "m", **amounts: int) -> None:
        reservation = self.meter.reserve(key, model, lambda: (0, 0, 0, 0, 0))
        self.meter.settle(reservation, Amounts(**{"requests": 1, **amounts}))

    def tokens(self, key: str = "k") -> list[int]:
        """Return the tokens used today and this month."""
        return [state.used for state in self.meter.read(key)]

    async def sums(self, *by: str, **wanted: Any) -> list[tuple[Any, ...]]:
        page, total = await self.rows.page(Wanted(by=by, **wanted), limit=5000, offset=0)
        assert total == len(page)
        names = [each for each in ("day", "month", "key_id", "model") if each in page[0]]
        return [tuple(row[name] for name in (*names, "total_tokens")) for row in page]


def using(path: Path, act: Callable[[Database], Awaitable[None]]) -> None:
    async def run() -> None:
        db = await Database.open(path / "db")
        try:
            await act(db)
        finally:
            await db.close()

    asyncio.run(run())


async def statement(db: Database, text: str) -> None:
    async with db.write() as session:
        await (await session.connection()).exec_driver_sql(text)


def test_usage_is_added_to_rows_over_runs_and_days(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        first = Run(db, NOON - 26 * DAY)  # the first of the month
        first.charge(prompt_tokens=1, completion_tokens=1)
        await first.write_behind.flush()
        first.now = NOON
        first.charge(completion_tokens=2, pixels=500_000, audio_us=3, gpu_us=4)
        await first.write_behind.flush()
        first.charge(completion_tokens=3)
        first.charge("other", "x", completion_tokens=100)
        await first.write_behind.flush()
        await first.write_behind.flush()
        second = Run(db)
        assert second.tokens() == [0, 0]
        await second.rows.load()
        assert (second.tokens(), second.tokens("other")) == ([5, 7], [100, 100])
        for key_id, counts in (("k", (2, 5, 3, 7)), ("nobody", (0, 0, 0, 0))):
            daily, monthly = await second.rows.sums_of(key_id, "2026-11-27")
            assert (*daily[:2], *monthly[:2]) == counts
        second.charge(completion_tokens=10)
        assert second.tokens() == [15, 17]
        await second.write_behind.flush()
        later = Run(db, NOON + 4 * DAY)  # the next month
        await later.rows.load()
        assert later.tokens() == [0, 0]
        async with db.read() as session:
            row = await session.get_one(Usage, ("k", "m", "2026-11-27"))
        assert Amounts(*(getattr(row, name) for name in Amounts._fields)) == Amounts(
            3, 0, 15, 500_000, 3, 4
        )

    using(tmp_path, act)


def test_usage_is_summed_by_what_is_asked_for(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        run = Run(db, NOON - 31 * DAY)
        for days, key, model in itertools.product((0, 30, 31), "ab", "xy"):
            run.now = NOON - 31 * DAY + days * DAY
            run.charge(key, model, completion_tokens=1)
        await run.write_behind.flush()
        whole = await run.sums("day", "key", "model")
        assert len(whole) == 12
        assert whole[0] == ("2026-11-27", "a", "x", 1)
        assert await run.sums("month") == [("2026-11", 8), ("2026-10", 4)]
        assert await run.sums("month", "key", key_id="a") == [
            ("2026-11", "a", 4),
            ("2026-10", "a", 2),
        ]
        assert await run.sums("model", model="y") == [("y", 6)]
        between: dict[str, Any] = {"first": date(2026, 10, 28), "last": date(2026, 11, 26)}
        assert await run.sums("day", **between) == [("2026-11-26", 4)]
        page, total = await run.rows.page(Wanted(by=GROUPS[:1]), limit=1, offset=1)
        assert (page[0]["day"], total) == ("2026-11-26", 3)
        assert await run.rows.page(Wanted(by=["key"], key_id="z"), limit=9, offset=0) == ([], 0)

    using(tmp_path, act)


@pytest.mark.sqlite
def test_usage_that_could_not_be_written_is_written_later_and_once(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        run = Run(db)
        for number in range(1200):
            run.charge(f"k{number}", completion_tokens=1)
        await statement(db, "PRAGMA query_only = 1")
        with pytest.raises(DatabaseUnavailable):
            await run.write_behind.flush()
        run.charge("k7", completion_tokens=1)
        await statement(db, "PRAGMA query_only = 0")
        await asyncio.gather(run.write_behind.flush(), run.write_behind.flush())
        rows = await run.sums("key")
        assert (len(rows), sum(tokens for _, tokens in rows)) == (1200, 1201)

    using(tmp_path, act)


def test_usage_of_a_day_that_the_clock_went_back_to_counts_again(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        run = Run(db)
        run.charge(completion_tokens=5)
        run.now += 400 * DAY  # a clock that was wrong
        run.charge(completion_tokens=1)
        run.now = NOON + 1
        run.charge(completion_tokens=2)
        assert run.tokens() == [2, 2]
        await run.write_behind.flush()
        run.charge(completion_tokens=1)
        await run.rows.refresh()
        assert run.tokens() == [8, 8]
        await statement(db, "DELETE FROM usage")
        await run.rows.refresh()  # once
        assert run.tokens() == [8, 8]

    using(tmp_path, act)


def test_usage_is_kept_for_the_retention(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        now = datetime.now(UTC).timestamp()
        run = Run(db, now)
        for days in (60, 42, 38, 0):
            run.now = now - days * DAY
            run.charge()
        await run.write_behind.flush()
        await run.rows.clean()
        async with db.read() as session:
            assert len((await session.scalars(select(Usage))).all()) == 2

    using(tmp_path, act)


def test_usage_in_a_damaged_table_ends_in_one_clear_message(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        await statement(db, "ALTER TABLE usage RENAME COLUMN pixels TO pixies")
        with pytest.raises(DatabaseError, match="the table of usage is damaged"):
            await Run(db).rows.load()

    using(tmp_path, act)
