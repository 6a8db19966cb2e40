"""Copies a whole database into another one, between SQLite and PostgreSQL."""

from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, exc, func, select
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.schema import Table as SqlTable

from bitinglip.db import files
from bitinglip.db.files import DatabaseError
from bitinglip.db.tables import Table
from bitinglip.settings.database import Database as DatabaseSettings

_ROWS_AT_ONCE = 500


def to_file(settings: DatabaseSettings, target: Path) -> dict[str, int]:
    """Copy PostgreSQL, also one in use, into a new file; replaces ``target``.

    Returns the count of rows of each table; raises DatabaseError or OSError, and leaves what was
    there.
    """
    from bitinglip.db import postgres

    assert settings.url is not None
    url = postgres.address(settings.url)
    counts: dict[str, int] = {}
    try:
        with postgres.one_connection(url, reads=True) as engine:
            postgres.check_version(engine, url)
            files.create(target, lambda file: counts.update(_copy(engine, file)))
    except exc.SQLAlchemyError as error:
        raise DatabaseError(_why(postgres.shown(settings.url), error)) from error
    return counts


def to_postgres(source: Path, settings: DatabaseSettings) -> dict[str, int]:
    """Copy a file that no server writes to into PostgreSQL, whose tables must be empty.

    Returns the count of rows of each table; raises DatabaseError, and changes nothing then but the
    schema.
    """
    from bitinglip.db import postgres

    assert settings.url is not None
    url, name = postgres.address(settings.url), postgres.shown(settings.url)
    files.prepare(source)
    postgres.migrate(url)
    try:
        with postgres.one_connection(url) as target, target.begin() as connection:
            _check_empty(connection, name)
            return _copy(_reader(source), connection)
    except exc.SQLAlchemyError as error:
        raise DatabaseError(_why(name, error)) from error


def _copy(source: Engine, target: Connection) -> dict[str, int]:
    """Copy all rows of one state of the source in the transaction of the target."""
    with source.connect() as rows:
        return {table.name: _copy_table(rows, target, table) for table in _tables()}


def _copy_table(source: Connection, target: Connection, table: SqlTable) -> int:
    count = 0
    reading = source.execution_options(stream_results=True, max_row_buffer=_ROWS_AT_ONCE)
    with reading.execute(select(table)) as rows:
        for part in rows.partitions(_ROWS_AT_ONCE):
            target.execute(table.insert(), [dict(row._mapping) for row in part])
            count += len(part)
    found = target.execute(select(func.count()).select_from(table)).scalar_one()
    if found != count:
        raise DatabaseError(f"{found} of {count} rows of {table.name} have arrived; try again")
    return count


def _tables() -> list[SqlTable]:
    return Table.metadata.sorted_tables


def _check_empty(connection: Connection, name: str) -> None:
    for table in _tables():
        if connection.execute(select(table).limit(1)).first() is not None:
            raise DatabaseError(
                f"{name} has rows in its table {table.name} already; name an empty database"
            )


def _reader(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path.absolute()}", poolclass=NullPool)
    # The driver begins no transaction for what only reads.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _why(name: str, error: exc.SQLAlchemyError) -> str:
    reason = getattr(error, "orig", None) or error
    return f"the copy to or from {name} failed, and nothing was changed: {reason}"
