"""Connects to PostgreSQL through psycopg, directly or through a pooler of transactions.

So nothing outlives a transaction: no prepared statements, no settings or locks of a session.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, Executable, create_engine, exc, make_url, text
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    create_async_engine,
)
from sqlalchemy.pool import NullPool

from bitinglip.db.backend import Select
from bitinglip.db.files import DatabaseError
from bitinglip.db.migrations import HEAD, VERSIONS
from bitinglip.errors import BitingLipError, DatabaseUnavailable, DiskFull, InvalidRequest
from bitinglip.extras import install_command
from bitinglip.settings.database import Database as DatabaseSettings
from bitinglip.settings.database import without_password

#: of the lock that each transaction that writes takes, so that gateways write in turn
WRITERS = 0x62_69_74_69_6E_67
#: seconds that a transaction waits for that lock, and that a connection may take to open
LOCK_SECONDS, CONNECT_SECONDS = 5, 5
_ROWS_AT_ONCE = 1000  #: that a snapshot reads from the server
#: begins a transaction that writes: what it commits is on the disk, whatever the server's default
_BEGIN = text(
    f"SELECT set_config('lock_timeout', '{LOCK_SECONDS}s', true),"
    " set_config('synchronous_commit', CASE current_setting('synchronous_commit')"
    " WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true),"
    f" pg_advisory_xact_lock({WRITERS})"
)
#: the lock that a running server holds: alone, or together with others that share the database
SERVER = WRITERS + 1
_CLAIM = f"SELECT pg_try_advisory_xact_lock({SERVER})"
_SHARE = f"SELECT pg_try_advisory_xact_lock_shared({SERVER})"
#: that each server which shares the database holds for its name: a copied home is found out
_NAME = text(f"SELECT pg_try_advisory_xact_lock({SERVER & 0x7FFFFFFF}, hashtext(:name))")
#: of those that write: the one whose turn it is, that of the claim, that of the heartbeats
_WRITING = 3
_VERSION = "SELECT version_num FROM alembic_version"
#: what the first letters of an SQLSTATE say of the database; others are bugs of ours
_STATES = {
    "53100": None,  # there is no disk space
    "55P03": "is locked by another program; try again later",
    "25006": "is read-only; changes are refused",
    "42501": "refuses its user the right to do this",
    "XX00": "is damaged; restore a backup (see docs/backups.md)",
    "08": "does not answer; try again later",
    "53": "has no connections or memory left; try again later",
    "57": "is shutting down or was interrupted; try again later",
    "58": "cannot be written or read: its system reports an error",
}


class Postgres:
    """Is the backend of a database on a server.

    Gateways write in turn, so that two never spoil its rows. Writers have connections of their own:
    any number of readers makes none of them wait.
    """

    def __init__(self, url: URL, settings: DatabaseSettings) -> None:
        self._url = url
        self.writer = _engine(url, _WRITING, 0, LOCK_SECONDS)
        pool = (settings.pool_size, settings.max_overflow, settings.pool_timeout)
        self.reader = _engine(url, *pool).execution_options(postgresql_readonly=True)
        self._claim: AsyncConnection | None = None  #: whose transaction holds SERVER

    @classmethod
    def prepared(cls, settings: DatabaseSettings) -> Self:
        """Make or migrate the tables, and return their backend. Raises DatabaseError."""
        assert settings.url is not None
        url = address(settings.url)
        migrate(url)
        return cls(url, settings)

    async def begin(self, session: AsyncSession) -> None:
        await session.execute(_BEGIN)

    def fault(self, error: exc.SQLAlchemyError) -> BitingLipError | None:
        if not isinstance(error, exc.DBAPIError):
            return None
        state = getattr(error.orig, "sqlstate", None)
        if state is None and isinstance(error, exc.DataError):  # what SQLite takes and finds
            return InvalidRequest("A text of the request holds the character U+0000.")
        if state is None:  # the connection is gone, or was never made
            lost = isinstance(error, exc.OperationalError | exc.InterfaceError)
            return DatabaseUnavailable() if lost or error.connection_invalidated else None
        for prefix, reason in _STATES.items():
            if state.startswith(prefix):
                if reason is None:
                    return DiskFull("There is no disk space left for the database.")
                return DatabaseUnavailable(f"The database {reason}.")
        return None

    async def claim(self, shared_as: str = "") -> bool:
        """Hold locks in a transaction that stays open; see ``Backend.claim``."""
        if self._claim is not None:
            with suppress(exc.SQLAlchemyError):  # it was lost, with the lock
                await self._claim.execute(text("SELECT 1"))
                return True
            await self._claim.invalidate()
            await self._claim.close()
            self._claim = None
        connection = await self.writer.connect()
        try:
            held = await connection.scalar(text(_SHARE if shared_as else _CLAIM))
            if held and shared_as:
                held = await connection.scalar(_NAME, {"name": shared_as})
        except BaseException:
            await connection.close()
            raise
        if held:
            self._claim = connection
        else:
            await connection.close()
        return bool(held)

    async def release(self) -> None:
        if self._claim is not None:
            await self._claim.close()
            self._claim = None
        await self.writer.dispose()
        await self.reader.dispose()

    async def probe(self, session: AsyncSession) -> None:
        await session.execute(text("UPDATE alembic_version SET version_num = version_num"))

    async def shrink(self, session: AsyncSession) -> None:
        """Do nothing: the server's own vacuum does it."""

    @contextmanager
    def snapshot(self) -> Iterator[Select]:
        with one_connection(self._url, reads=True) as engine:
            try:
                with snapshot(engine) as select:
                    yield select
            except exc.SQLAlchemyError as error:
                raise (self.fault(error) or error) from error


_CONNECT: dict[str, Any] = {"prepare_threshold": None, "connect_timeout": CONNECT_SECONDS}


def _engine(url: URL, size: int, overflow: int, patience: float) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=size,
        max_overflow=overflow,
        pool_timeout=patience,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args=_CONNECT,
    )


def address(url: str) -> URL:
    """Return a URL for psycopg.

    Raises DatabaseError where that is not installed, or for a parameter that is not one of the
    server's own: psycopg would take it for one of its connections, such as autocommit.
    """
    try:
        from psycopg.pq import Conninfo  # says at once whether the extra is there
    except ImportError as error:
        raise DatabaseError(
            f"{shown(url)} needs psycopg ({error}); run: {install_command('postgres')}"
        ) from error
    made = make_url(url).set(drivername="postgresql+psycopg")
    known = {each.keyword.decode() for each in Conninfo.get_defaults()}
    if unknown := sorted(made.query.keys() - known):
        raise DatabaseError(f"{shown(url)}: PostgreSQL has no parameter {unknown[0]}")
    return made


def shown(url: str | URL) -> str:
    """Return a URL as messages may name it."""
    whole = url if isinstance(url, str) else url.render_as_string(hide_password=False)
    return without_password(whole)


def migrate(url: URL) -> str | None:
    """Bring a database to today's schema; return the version that it had, None without tables.

    Gateways that start together do it once. Raises DatabaseError.
    """
    name = shown(url)
    try:
        with one_connection(url) as engine, engine.begin() as connection:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({WRITERS})"))
            _check_encoding(connection, name)
            version = _known_version(connection, name)
            if version != HEAD:
                # alembic is slow to import and rarely needed.
                from bitinglip.db.migrations.upgrade import upgrade_connection

                upgrade_connection(connection)
    except exc.SQLAlchemyError as error:
        raise _unusable(name, error) from error
    return version


def version_of(url: URL) -> str | None:
    """Return the schema version of a database; None without our tables. Raises DatabaseError."""
    name = shown(url)
    try:
        with one_connection(url, reads=True) as engine, engine.connect() as connection:
            return _known_version(connection, name)
    except exc.SQLAlchemyError as error:
        raise _unusable(name, error) from error


def read_once(url: URL, statement: Executable) -> list[Any]:
    """Return the first column of what a statement selects. Raises DatabaseError."""
    try:
        with one_connection(url, reads=True) as engine, engine.connect() as connection:
            return list(connection.execute(statement).scalars())
    except exc.SQLAlchemyError as error:
        raise _unusable(shown(url), error) from error


def check_version(engine: Engine, url: URL) -> None:
    """Raise DatabaseError for a database that has not today's schema."""
    name = shown(url)
    with engine.connect() as connection:
        version = _known_version(connection, name)
    if version is None:
        raise DatabaseError(f"{name} holds no tables of BitingLip")
    if version != HEAD:
        raise DatabaseError(f"{name} has the schema {version}; run: bitinglip db migrate")


def _known_version(connection: Connection, name: str) -> str | None:
    """Return the schema version of a database; None of one without our tables."""
    found = connection.execute(text("SELECT to_regclass('alembic_version')")).scalar()
    version = None if found is None else connection.execute(text(_VERSION)).scalar()
    if version is not None and version not in VERSIONS:
        raise DatabaseError(
            f"{name} was written by another version of BitingLip (schema {version}, this one knows "
            f"up to {HEAD}); install that version, or restore a backup"
        )
    return version


@contextmanager
def snapshot(engine: Engine) -> Iterator[Select]:
    """See one state of the database, whose rows come a part at a time."""
    options: Any = {"stream_results": True, "yield_per": _ROWS_AT_ONCE}
    with engine.connect().execution_options(**options) as connection:

        def select(sql: str) -> Iterator[Sequence[Any]]:
            with connection.exec_driver_sql(sql) as rows:
                yield from rows

        yield select


@contextmanager
def one_connection(url: URL, *, reads: bool = False) -> Iterator[Engine]:
    """Open an engine for a command or a thread; ``reads``: its transactions see one state."""
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=_CONNECT)
    if reads:
        engine = engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
    try:
        yield engine
    finally:
        engine.dispose()


def _unusable(name: str, error: exc.SQLAlchemyError) -> DatabaseError:
    return DatabaseError(f"{name} cannot be used: {getattr(error, 'orig', None) or error}")


def _check_encoding(connection: Connection, name: str) -> None:
    encoding = connection.execute(text("SHOW server_encoding")).scalar()
    if encoding != "UTF8":
        raise DatabaseError(f"{name} has the encoding {encoding}; make one with ENCODING 'UTF8'")
