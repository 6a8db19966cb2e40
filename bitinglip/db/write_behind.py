"""Writes what parts of the server keep in memory, beside the requests that changed it.

A kill loses what came after the last flush, so flushes are frequent; a stop makes a last one. What
has not changed costs nothing.
"""

import asyncio
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from bitinglip.db.database import Database

FLUSH_SECONDS = 0.5  #: between two flushes: with the write itself less than a second is lost


class Changes(Protocol):
    """Holds what a part has taken out of its memory, to be written once."""

    async def write(self, session: AsyncSession) -> None: ...

    def give_back(self) -> None:
        """Put it back, because it could not be written; there may be newer changes by now."""


class Part(Protocol):
    def take(self) -> Changes | None:
        """Take what has changed since the last call; None if nothing has."""


class WriteBehind:
    """Writes the changes of all parts in one transaction, each exactly once."""

    def __init__(self, db: Database, *parts: Part) -> None:
        self._db = db
        self._parts = parts
        self._turn = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None

    async def flush(self) -> None:
        """Write what has changed since the last flush.

        Raises DiskFull or DatabaseUnavailable; then the next flush writes it. A write goes on where
        its caller is cancelled: whether it was committed could not be told, and additions that are
        made twice are wrong.
        """
        async with self._turn:
            if self._writing is not None:
                await asyncio.wait([self._writing])
                self._writing.exception()  # it gave back what it could not write
            self._writing = asyncio.create_task(self._write())
            await asyncio.shield(self._writing)

    async def _write(self) -> None:
        taken = [changes for part in self._parts if (changes := part.take()) is not None]
        if not taken:
            return
        try:
            async with self._db.write() as session:
                for changes in taken:
                    await changes.write(session)
        except BaseException:
            for changes in taken:
                changes.give_back()
            raise
