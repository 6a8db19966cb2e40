"""Opens the database: one writer, in one process, and readers beside it that cannot write.

The SQLite that Python links may corrupt a WAL when two connections write or checkpoint at once
(fixed in 3.51.3). Here one connection does both, and the readers are opened read-only.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from sqlalchemy import URL, event, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from bitinglip.db.files import DatabaseError, prepare
from bitinglip.errors import BitingLipError, DatabaseUnavailable, DiskFull
from bitinglip.telemetry.health import Health

#: seconds that a writer waits for its turn, and then for a lock that another program holds
PATIENCE = 5.0
_CHECK, _PART = "database", "changes"  #: the problem of /health while writing fails
_PRAGMAS = {
    "busy_timeout": f"{PATIENCE * 1000:.0f}",
    "foreign_keys": "ON",
    "trusted_schema": "OFF",
    "cell_size_check": "ON",
}
_LOG_BYTES = 32 * 2**20  #: what the log keeps on the disk once it is written back
# FULL: what was answered survives a power cut.
_WRITER_PRAGMAS = {
    "journal_mode": "WAL",
    "synchronous": "FULL",
    "journal_size_limit": str(_LOG_BYTES),
    **_PRAGMAS,
}


_SPARE_PAGES = 256  #: free pages that are kept for the next rows
_PAGES_AT_ONCE = 4096  #: 16 MiB: a fraction of a second


class Database:
    """Sessions on one SQLite file; ``open`` it once, ``close`` it last.

    What the file, the disk or another program does to it is raised as DiskFull or
    DatabaseUnavailable and reported to ``health``; no other module handles the library's errors.
    """

    def __init__(
        self, path: Path, writer: AsyncEngine, reader: AsyncEngine, health: Health
    ) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader
        self._health = health
        self._lock = asyncio.Lock()
        self._checking: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: Path, health: Health | None = None) -> Self:
        """Makes or migrates the file where needed; DatabaseError when it cannot be trusted."""
        await asyncio.to_thread(prepare, path)
        database = cls(
            path,
            _engine(path, "rw", _WRITER_PRAGMAS, connections=1),
            _engine(path, "ro", _PRAGMAS, connections=2),
            health or Health(),
        )
        try:
            # The writer comes first: a read-only connection cannot begin a WAL.
            async with database.write() as session:
                await session.execute(text("SELECT 1"))
        except BitingLipError as error:
            await database.close()
            raise DatabaseError(f"{path}: {error.message}") from error
        return database

    async def close(self) -> None:
        """Close the readers first, so that the last checkpoint is the writer's."""
        if self._checking is not None:
            await asyncio.wait([self._checking], timeout=PATIENCE)
        await self._reader.dispose()
        await self._writer.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Open a transaction on the one writer: committed at the end, rolled back by an exception.

        Raises DiskFull or DatabaseUnavailable, after ten seconds at most.
        """
        await self._take_turn()
        try:
            session = AsyncSession(self._writer, expire_on_commit=False)
            async with session, session.begin():
                yield session
        except exc.SQLAlchemyError as error:
            if (ours := _ours(error)) is None:
                raise
            self._health.degrade(_CHECK, _PART, ours.message)
            raise ours from error
        finally:
            self._lock.release()
        self._health.recover(_CHECK, _PART)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Open a session that cannot write. Raises DatabaseUnavailable."""
        try:
            async with AsyncSession(self._reader) as session:
                yield session
        except exc.SQLAlchemyError as error:
            if (ours := _ours(error)) is None:
                raise
            raise ours from error

    async def check(self) -> None:
        """Raises DatabaseUnavailable when the database does not answer; for the health routes.

        Those are open to all, so calls that come together share one answer: any number of them
        leaves a reader free for requests.
        """
        if self._checking is None:
            self._checking = asyncio.create_task(self._check())
            self._checking.add_done_callback(self._checked)
        await asyncio.shield(self._checking)

    def _checked(self, task: asyncio.Task[None]) -> None:
        self._checking = None
        if not task.cancelled():
            task.exception()  # there may be no waiter any more

    async def _check(self) -> None:
        try:
            async with self.read() as session:
                await session.execute(text("SELECT version_num FROM alembic_version"))
        except exc.OperationalError as error:  # its tables are gone
            raise DatabaseUnavailable(
                "The database has been changed by another program."
            ) from error

    async def probe(self) -> None:
        """While changes fail, try one that means nothing, to find out when they work again."""
        if self._health.has_problem(_CHECK, _PART):
            async with self.write() as session:
                (number,) = (await session.execute(text("PRAGMA user_version"))).one()
                # Another value than before: the same one would not reach the disk.
                await session.execute(text(f"PRAGMA user_version = {1 - bool(number)}"))

    async def shrink(self) -> None:
        """Give free pages back to the disk, a part of them at a time. Raises as ``write`` does."""
        async with self.write() as session:
            (free,) = (await session.execute(text("PRAGMA freelist_count"))).one()
            if free > _SPARE_PAGES:
                raw = await (await session.connection()).get_raw_connection()
                driver: Any = raw.driver_connection
                # It moves one page a step; only a script runs to its end, outside transactions.
                await driver.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")

    async def _take_turn(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._lock.acquire()
        except TimeoutError:
            raise DatabaseUnavailable("The database is busy; try again later.") from None


def _ours(error: exc.SQLAlchemyError) -> BitingLipError | None:
    """Return our error that says what has happened to the database; None for a bug of ours."""
    if isinstance(error, exc.TimeoutError):
        return DatabaseUnavailable("The database is busy; try again later.")
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


_REASONS = {
    "SQLITE_BUSY": "is locked by another program; try again later",
    "SQLITE_LOCKED": "is locked by another program; try again later",
    "SQLITE_READONLY": "is read-only; changes are refused",
    "SQLITE_PERM": "is read-only; changes are refused",
    "SQLITE_IOERR": "cannot be written or read: the disk reports an error",
    "SQLITE_CANTOPEN": "cannot be opened; try again later",
    "SQLITE_CORRUPT": "is damaged; restore a backup (see README, Backups)",
    "SQLITE_NOTADB": "is damaged; restore a backup (see README, Backups)",
}


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
        pool_timeout=PATIENCE,
        hide_parameters=True,
    )

    def set_pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name} = {value}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", set_pragmas)
    return engine
