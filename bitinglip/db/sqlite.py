"""Connects to an SQLite file: one writer, in one process, and readers that cannot write.

The SQLite that Python links may corrupt a WAL when two connections write or checkpoint at once
(fixed in 3.51.3). Here one connection does both, and the readers are opened read-only.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, event, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from bitinglip.db.backend import Select
from bitinglip.errors import BitingLipError, DatabaseUnavailable, DiskFull

#: seconds that a connection waits for a lock that another program holds
LOCK_SECONDS = 5.0
_LOG_BYTES = 32 * 2**20  #: what the log keeps on the disk once it is written back
_SPARE_PAGES = 256  #: free pages that are kept for the next rows
_PAGES_AT_ONCE = 4096  #: 16 MiB: a fraction of a second

_PRAGMAS = {
    "busy_timeout": f"{LOCK_SECONDS * 1000:.0f}",
    "foreign_keys": "ON",
    "trusted_schema": "OFF",
    "cell_size_check": "ON",
}
# FULL: what was answered survives a power cut.
_WRITER_PRAGMAS = {
    "journal_mode": "WAL",
    "synchronous": "FULL",
    "journal_size_limit": str(_LOG_BYTES),
    **_PRAGMAS,
}
_REASONS = {
    "SQLITE_BUSY": "is locked by another program; try again later",
    "SQLITE_LOCKED": "is locked by another program; try again later",
    "SQLITE_READONLY": "is read-only; changes are refused",
    "SQLITE_PERM": "is read-only; changes are refused",
    "SQLITE_IOERR": "cannot be written or read: the disk reports an error",
    "SQLITE_CANTOPEN": "cannot be opened; try again later",
    "SQLITE_CORRUPT": "is damaged; restore a backup (see docs/backups.md)",
    "SQLITE_NOTADB": "is damaged; restore a backup (see docs/backups.md)",
}


class Sqlite:
    """Is the backend of a file that ``files.prepare`` has judged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.writer = _engine(path, "rw", _WRITER_PRAGMAS, connections=1)
        self.reader = _engine(path, "ro", _PRAGMAS, connections=2)

    async def begin(self, session: AsyncSession) -> None:
        """Do nothing: the one writer has one connection."""

    def fault(self, error: exc.SQLAlchemyError) -> BitingLipError | None:
        raw = getattr(error, "orig", None)
        # The exact class: its subclasses but one say that the statement or the data were wrong.
        if not isinstance(raw, sqlite3.OperationalError) and type(raw) is not sqlite3.DatabaseError:
            return None
        name = str(getattr(raw, "sqlite_errorname", ""))
        if name == "SQLITE_FULL":
            return DiskFull("There is no disk space left for the database.")
        if name == "SQLITE_ERROR":
            return None
        for prefix, reason in _REASONS.items():
            if name.startswith(prefix):
                return DatabaseUnavailable(f"The database {reason}.")
        return DatabaseUnavailable()

    async def claim(self, shared_as: str = "") -> bool:  # noqa: ARG002  a file is not shared
        """Do nothing: who holds the home has its file."""
        return True

    async def release(self) -> None:
        # The readers first, so that the last checkpoint is the writer's.
        await self.reader.dispose()
        await self.writer.dispose()

    async def probe(self, session: AsyncSession) -> None:
        (number,) = (await session.execute(text("PRAGMA user_version"))).one()
        # Another value than before: the same one would not reach the disk.
        await session.execute(text(f"PRAGMA user_version = {1 - bool(number)}"))

    async def shrink(self, session: AsyncSession) -> None:
        (free,) = (await session.execute(text("PRAGMA freelist_count"))).one()
        if free > _SPARE_PAGES:
            raw = await (await session.connection()).get_raw_connection()
            driver: Any = raw.driver_connection
            # It moves one page a step; only a script runs to its end, outside transactions.
            await driver.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")

    @contextmanager
    def snapshot(self) -> Iterator[Select]:
        try:
            with snapshot(self._path) as select:
                yield select
        except sqlite3.Error as error:
            raise DatabaseUnavailable("The database cannot be read.") from error


@contextmanager
def snapshot(path: Path) -> Iterator[Select]:
    """See one state of a file. Raises sqlite3.Error for one that cannot be read."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        # What was damaged is wrong all the same, and no reason to stop.
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        connection.execute("BEGIN")
        yield connection.execute


def _engine(path: Path, mode: str, pragmas: dict[str, str], *, connections: int) -> AsyncEngine:
    url = URL.create(
        "sqlite+aiosqlite",
        database=f"file:{quote(str(path.absolute()))}",
        query={"mode": mode, "uri": "true"},
    )
    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=LOCK_SECONDS,
        hide_parameters=True,
    )

    def set_pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name} = {value}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", set_pragmas)
    return engine
