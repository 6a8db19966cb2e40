"""Writes the rows of usage: one for each key, model and day, added to as charges come."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Label, Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, delete, func, select

from bitinglip.access.usage.amounts import NOTHING, Amounts, Units, shown
from bitinglip.access.usage.meter import Meter, RowId
from bitinglip.db.database import Database
from bitinglip.db.dialects import insert
from bitinglip.db.loading import loading
from bitinglip.db.retention import Retention
from bitinglip.db.tables import Usage

CLEAN_SECONDS = 3600.0  #: between two removals of rows that are too old
_ROWS_AT_ONCE = 500
_MONTH = len("2026-11")
#: what rows may be summed by, and in which order a list shows it
GROUPS = ("day", "month", "key", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Says which rows are summed, and by what; None matches any."""

    by: Sequence[str]  #: of ``GROUPS``
    key_id: str | None = None
    model: str | None = None
    first: date | None = None
    last: date | None = None


class UsageRows:
    """Writes what the meter counts, and reads what was written."""

    def __init__(self, db: Database, meter: Meter, *, retention: float | None = None) -> None:
        """``retention``: the seconds that a row is kept; None keeps all."""
        self._db = db
        self._meter = meter
        self._retention = None if retention is None else Retention(retention)

    async def load(self) -> None:
        """Tell the meter what keys have used today and this month.

        Raises DatabaseError if it cannot be read.
        """
        today = self._meter.today
        with loading("usage"):
            async with self._db.read() as session:
                daily = await _sums(session, today.name)
                monthly = await _sums(session, f"{today.month}-")
        self._meter.restore(daily, monthly)

    async def sums_of(self, key_id: str, day: str) -> tuple[Units, Units]:
        """Return what a key has used in a day and in its month, by what is written.

        Raises DatabaseUnavailable.
        """
        async with self._db.read() as session:
            daily = (await _sums(session, day, key_id)).get(key_id, NOTHING)
            monthly = (await _sums(session, day[: _MONTH + 1], key_id)).get(key_id, NOTHING)
        return daily.units, monthly.units

    async def refresh(self) -> None:
        """Load the counts of the present day again if the clock went back to it.

        Raises DatabaseUnavailable.
        """
        if self._meter.stale:
            await self.load()

    def take(self) -> "RowChanges | None":
        """Take the charges that are not written yet."""
        rows = self._meter.take_rows()
        return RowChanges(self._meter, rows) if rows else None

    async def page(
        self, wanted: Wanted, *, limit: int, offset: int
    ) -> tuple[list[dict[str, Any]], int]:
        """Return one page of sums, the latest day first, and the number of all."""
        query, names = _query(wanted)
        async with self._db.read() as session:
            total = (
                await session.scalars(select(func.count()).select_from(query.subquery()))
            ).one()
            rows = await session.execute(query.limit(limit).offset(offset))
            return [_described(row, names) for row in rows], total

    async def clean(self) -> None:
        """Remove rows that are too old. Raises DiskFull or DatabaseUnavailable."""
        if self._retention is None:
            return
        oldest = self._retention.oldest().date().isoformat()
        async with self._db.write() as session:
            await session.execute(delete(Usage).where(col(Usage.day) < oldest))


@dataclass(frozen=True, slots=True)
class RowChanges:
    """Holds additions to rows."""

    meter: Meter
    rows: Mapping[RowId, Iterable[int]]

    async def write(self, session: AsyncSession) -> None:
        values = [
            dict(zip(("key_id", "model", "day", *Amounts._fields), (*name, *row), strict=True))
            for name, row in self.rows.items()
        ]
        for start in range(0, len(values), _ROWS_AT_ONCE):
            added = insert(session, Usage)
            sums = {each: getattr(Usage, each) + added.excluded[each] for each in Amounts._fields}
            upsert = added.on_conflict_do_update(index_elements=_ROW, set_=sums)
            await session.execute(upsert, values[start : start + _ROWS_AT_ONCE])

    def give_back(self) -> None:
        self.meter.give_back(self.rows)


_ROW = ("key_id", "model", "day")


async def _sums(session: AsyncSession, days: str, key_id: str | None = None) -> dict[str, Amounts]:
    """Return what each key, or one, has used in the days whose names begin so."""
    query = (
        select(Usage.key_id, *_totals())
        .where(col(Usage.day).startswith(days))
        .group_by(col(Usage.key_id))
    )
    if key_id is not None:
        query = query.where(col(Usage.key_id) == key_id)
    return {row[0]: Amounts(*map(int, row[1:])) for row in await session.execute(query)}


def _query(wanted: Wanted) -> tuple[Select[Any], list[str]]:
    """Return the query of all sums, and the names of their groups."""
    columns: dict[str, Label[Any]] = {
        "day": col(Usage.day).label("day"),
        "month": func.substr(Usage.day, 1, _MONTH).label("month"),
        "key": col(Usage.key_id).label("key_id"),
        "model": col(Usage.model).label("model"),
    }
    groups = [columns[name] for name in GROUPS if name in wanted.by]
    where = []
    if wanted.key_id is not None:
        where.append(col(Usage.key_id) == wanted.key_id)
    if wanted.model is not None:
        where.append(col(Usage.model) == wanted.model)
    if wanted.first is not None:
        where.append(col(Usage.day) >= wanted.first.isoformat())
    if wanted.last is not None:
        where.append(col(Usage.day) <= wanted.last.isoformat())
    order = [each.desc() if each.name in ("day", "month") else each.asc() for each in groups]
    query: Select[Any] = (
        select(*groups, *_totals()).where(*where).group_by(*groups).order_by(*order)
    )
    return query, [each.name for each in groups]


def _totals() -> list[Label[Any]]:
    return [func.sum(getattr(Usage, name)).label(name) for name in Amounts._fields]


def _described(row: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    amounts = Amounts(*map(int, row[len(names) :]))
    return {**dict(zip(names, row, strict=False)), **shown(amounts)}
