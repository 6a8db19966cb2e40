"""Keeps what keys have taken over a restart: in the database, written aside of the requests."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, delete, select

from bitinglip.access.limits.admission import now
from bitinglip.access.limits.gcra import SECOND
from bitinglip.access.limits.policy import HOUR
from bitinglip.access.limits.store import MemoryStore
from bitinglip.db.database import Database
from bitinglip.db.loading import loading
from bitinglip.db.tables import LimitCell

#: cells that are full again sooner are not written: a restart takes about as long
_SOON = 2 * SECOND
_ROWS_AT_ONCE = 500


def unix_now() -> int:
    return time.time_ns() // 1000


class Checkpoint:
    """Turns a store's cells into moments of the calendar; other clocks end with the machine."""

    def __init__(
        self,
        db: Database,
        store: MemoryStore,
        *,
        clock: Callable[[], int] = now,
        calendar: Callable[[], int] = unix_now,
    ) -> None:
        self._db = db
        self._store = store
        self._clock = clock
        self._calendar = calendar
        self._written: set[str] = set()  #: cells that may have a row

    async def load(self) -> None:
        """Take over what the last run wrote. Raises DatabaseError if it cannot be read.

        No cell is kept for more than an hour, however the calendar was set meanwhile.
        """
        here, today = self._clock(), self._calendar()
        with loading("limits"):
            async with self._db.read() as session:
                rows = (await session.scalars(select(LimitCell))).all()
            left = {str(row.id): min(row.full_at - today, HOUR) for row in rows}
        self._written.update(left)
        self._store.restore({name: here + wait for name, wait in left.items() if wait > 0})

    def take(self) -> "CellChanges | None":
        """Take the cells that have changed since the last call."""
        changes = self._store.changes()
        here, today = self._clock(), self._calendar()
        rows = [
            LimitCell(id=name, full_at=today + full - here)
            for name, full in changes.items()
            if full - here > _SOON
        ]
        new = {row.id for row in rows}
        # What was given back, tokens above all, must not be missing again after a restart.
        gone = [name for name in changes if name not in new and name in self._written]
        if not rows and not gone:
            return None
        self._written.difference_update(gone)
        self._written |= new
        return CellChanges(self._store, self._written, gone, rows, today)


@dataclass(frozen=True, slots=True)
class CellChanges:
    """Holds changed cells, as they were at ``today``."""

    store: MemoryStore
    written: set[str]  #: the checkpoint's
    gone: list[str]  #: cells that are full again, or will be soon, and have a row from before
    rows: list[LimitCell]
    today: int

    @property
    def names(self) -> list[str]:
        return [*self.gone, *(row.id for row in self.rows)]

    async def write(self, session: AsyncSession) -> None:
        await session.execute(delete(LimitCell).where(col(LimitCell.full_at) <= self.today))
        names = self.names
        for start in range(0, len(names), _ROWS_AT_ONCE):
            part = names[start : start + _ROWS_AT_ONCE]
            await session.execute(delete(LimitCell).where(col(LimitCell.id).in_(part)))
        for start in range(0, len(self.rows), _ROWS_AT_ONCE):
            session.add_all(self.rows[start : start + _ROWS_AT_ONCE])
            await session.flush()

    def give_back(self) -> None:
        self.written.update(self.gone)
        self.store.unwritten(self.names)
