"""The open database: one writer, in one process; readers beside it that cannot write.

The SQLite that Python links may corrupt a WAL when two connections write or checkpoint at once
(fixed in 3.51.3). Here one connection does both, and the readers are opened read-only.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from sqlalchemy import URL, event, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from bitinglip.db.files import DatabaseError, prepare
from bitinglip.errors import DiskFull

_PRAGMAS = {
    "busy_timeout": "5000",
    "foreign_keys": "ON",
    "trusted_schema": "OFF",
    "cell_size_check": "ON",
}
# FULL: what was answered survives a power cut.
_WRITER_PRAGMAS = {"journal_mode": "WAL", "synchronous": "FULL"} | _PRAGMAS


class Database:
    """Sessions on one SQLite file; ``open`` it once, ``close`` it last."""

    def __init__(self, writer: AsyncEngine, reader: AsyncEngine) -> None:
        self._writer = writer
        self._reader = reader
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Makes or migrates the file where needed; DatabaseError when it cannot be trusted."""
        await asyncio.to_thread(prepare, path)
        database = cls(
            _engine(path, "rw", _WRITER_PRAGMAS, connections=1),
            _engine(path, "ro", _PRAGMAS, connections=2),
        )
        try:
            # The writer comes first: a read-only connection cannot begin a WAL.
            async with database.write() as session:
                await session.execute(text("SELECT 1"))
        except exc.DBAPIError as error:
            await database.close()
            raise DatabaseError(f"{path}: {error.orig}") from error
        return database

    async def close(self) -> None:
        """Readers first, so that the last checkpoint is the writer's."""
        await self._reader.dispose()
        await self._writer.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction on the one writer: committed at the end, rolled back by an exception."""
        async with self._lock, AsyncSession(self._writer, expire_on_commit=False) as session:
            try:
                async with session.begin():
                    yield session
            except exc.OperationalError as error:
                if getattr(error.orig, "sqlite_errorname", "") == "SQLITE_FULL":
                    raise DiskFull from error
                raise

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(self._reader) as session:
            yield session

    async def check(self) -> None:
        """Raises when the database does not answer; for the health route."""
        async with self._reader.connect() as connection:
            await connection.execute(text("SELECT version_num FROM alembic_version"))


def _engine(path: Path, mode: str, pragmas: dict[str, str], *, connections: int) -> AsyncEngine:
    url = URL.create(
        "sqlite+aiosqlite",
        database=f"file:{quote(str(path.absolute()))}",
        query={"mode": mode, "uri": "true"},
    )
    engine = create_async_engine(url, pool_size=connections, max_overflow=0, hide_parameters=True)

    def set_pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name} = {value}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", set_pragmas)
    return engine
