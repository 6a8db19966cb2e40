"""Opens the database: one writer at a time, and readers beside it that cannot write."""

import asyncio
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncSession

from bitinglip.db.backend import Backend, Select
from bitinglip.db.files import DatabaseError, prepare
from bitinglip.db.sqlite import Sqlite
from bitinglip.errors import BitingLipError, DatabaseUnavailable, InvalidRequest
from bitinglip.settings.database import Database as DatabaseSettings
from bitinglip.telemetry.health import Health

#: seconds that a writer waits for its turn
PATIENCE = 5.0
_CHECK, _PART = "database", "changes"  #: the problem of /health while writing fails
_CLAIM = "claim"  #: another one, while a second server uses the database
_CLAIM_SECONDS = 0.1  #: between two tries to claim it
_TAKEN = "Another server uses the same database"
_TAKEN_SHARED = "Another server uses the same database without gateways.shared, or this home's name"
#: seconds in which a transaction that writes begins: a connection, and its turn among gateways
_BEGIN_SECONDS = 12.0
T = TypeVar("T")


class Database:
    """Makes sessions on one database; ``open`` it once, ``close`` it last.

    What the file, the disk, the network or another program does to it is raised as DiskFull or
    DatabaseUnavailable and reported to ``health``; no other module handles the library's errors.
    """

    def __init__(self, backend: Backend, health: Health) -> None:
        self._backend = backend
        self._health = health
        self._lock = asyncio.Lock()
        self._checking: asyncio.Task[None] | None = None
        self._shared_as = ""

    @classmethod
    async def open(
        cls, path: Path, health: Health | None = None, settings: DatabaseSettings | None = None
    ) -> Self:
        """Open the database that ``settings`` name, else the file at ``path``.

        It is made or migrated where needed; raises DatabaseError when it cannot be trusted.
        """
        if settings is not None and settings.url is not None:
            # Its driver is an extra, and slow to import.
            from bitinglip.db.postgres import Postgres, shown

            name = shown(settings.url)
            backend: Backend = await to_thread(Postgres.prepared, settings)
        else:
            await to_thread(prepare, path)
            name, backend = str(path), Sqlite(path)
        database = cls(backend, health or Health())
        try:
            # The writer comes first: a read-only connection cannot begin a WAL.
            async with database.write() as session:
                await session.execute(text("SELECT 1"))
        except BitingLipError as error:
            await database.close()
            raise DatabaseError(f"{name}: {error.message}") from error
        return database

    async def close(self) -> None:
        """Close all connections."""
        if self._checking is not None:
            await asyncio.wait([self._checking], timeout=PATIENCE)
        await self._backend.release()

    async def claim(self, shared_as: str = "") -> None:
        """Keep other servers from the database, as long as it is open. Raises DatabaseError.

        ``shared_as``: the name of this server among those that share the database, which are let
        in. A server that was killed a moment ago is waited for.
        """
        self._shared_as = shared_as
        try:
            async with asyncio.timeout(PATIENCE):
                while not await self._backend.claim(shared_as):  # noqa: ASYNC110  it signals no release
                    await asyncio.sleep(_CLAIM_SECONDS)
        except TimeoutError:
            how = "stop that one first, or share it by gateways.shared in all of them"
            if shared_as:
                how = "stop that one first, or remove gateway.id from a home that is a copy"
            raise DatabaseError(f"{self._taken}; {how}") from None
        except exc.SQLAlchemyError as error:
            raise DatabaseError(f"the database cannot be claimed: {self._fault(error)}") from error

    @property
    def _taken(self) -> str:
        return _TAKEN_SHARED if self._shared_as else _TAKEN

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Open the one transaction that writes: committed at the end, rolled back by an exception.

        Raises DiskFull or DatabaseUnavailable: a turn is waited for five seconds, and a begin takes
        twelve at most.
        """
        await self._take_turn()
        try:
            session = AsyncSession(self._backend.writer, expire_on_commit=False)
            async with session, session.begin():
                await self._begin(session)
                yield session
        except exc.SQLAlchemyError as error:
            if (ours := self._fault(error)) is None:
                raise
            if not isinstance(ours, InvalidRequest):
                self._health.degrade(_CHECK, _PART, ours.message)
            raise ours from error
        finally:
            self._lock.release()
        self._health.recover(_CHECK, _PART)

    async def _begin(self, session: AsyncSession) -> None:
        """Begin to write. A database that says nothing must not keep the turn from others."""
        try:
            async with asyncio.timeout(_BEGIN_SECONDS):
                await self._backend.begin(session)
        except TimeoutError:
            silent = DatabaseUnavailable("The database does not answer; try again later.")
            self._health.degrade(_CHECK, _PART, silent.message)
            raise silent from None

    @asynccontextmanager
    async def write_beside(self) -> AsyncIterator[AsyncSession]:
        """Open a transaction that writes and waits for no turn: of rows that are this server's
        alone. Raises DatabaseUnavailable."""
        try:
            session = AsyncSession(self._backend.writer, expire_on_commit=False)
            async with asyncio.timeout(PATIENCE), session, session.begin():
                yield session
        except TimeoutError:
            raise DatabaseUnavailable("The database does not answer; try again later.") from None
        except exc.SQLAlchemyError as error:
            if (ours := self._fault(error)) is None:
                raise
            raise ours from error

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Open a session that cannot write. Raises DatabaseUnavailable."""
        try:
            async with AsyncSession(self._backend.reader) as session:
                yield session
        except exc.SQLAlchemyError as error:
            if (ours := self._fault(error)) is None:
                raise
            raise ours from error

    async def in_snapshot(self, read: Callable[[Select], T]) -> T:
        """Run a reader in a thread, on one state of the database. Raises DatabaseUnavailable."""

        def run() -> T:
            with self._backend.snapshot() as select:
                return read(select)

        return await to_thread(run)

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
        except (exc.OperationalError, exc.ProgrammingError) as error:  # its tables are gone
            raise DatabaseUnavailable(
                "The database has been changed by another program."
            ) from error

    async def probe(self) -> None:
        """Try a change that alters nothing while changes fail, to find out when they work again. A
        claim that was lost with its connection is made again."""
        try:
            claimed = await self._backend.claim(self._shared_as)
        except exc.SQLAlchemyError:  # what does not answer is reported by the change below
            claimed = True
        if claimed:
            self._health.recover(_CHECK, _CLAIM)
        else:
            self._health.degrade(_CHECK, _CLAIM, f"{self._taken}.")
        if self._health.has_problem(_CHECK, _PART):
            async with self.write() as session:
                await self._backend.probe(session)

    async def shrink(self) -> None:
        """Give free pages back to the disk, a part of them at a time. Raises as ``write`` does."""
        async with self.write() as session:
            await self._backend.shrink(session)

    async def _take_turn(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._lock.acquire()
        except TimeoutError:
            raise DatabaseUnavailable("The database is busy; try again later.") from None

    def _fault(self, error: exc.SQLAlchemyError) -> BitingLipError | None:
        if isinstance(error, exc.TimeoutError):
            return DatabaseUnavailable("The database is busy; try again later.")
        return self._backend.fault(error)
