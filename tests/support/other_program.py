"""Reads and changes a server's database as another program does: a file, or one of PostgreSQL."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.pool import NullPool

from tests.support import server


@contextmanager
def connected(path: Path) -> Iterator[Connection]:
    """Open the database that stands at a path, and commit at the end."""
    url, options = URL.create("sqlite", database=str(path)), {}
    if server.database_of is not None:
        url, options = make_url(server.database_of(path)), {"prepare_threshold": None}
    engine = create_engine(url, poolclass=NullPool, connect_args=options)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def change(path: Path, *statements: str) -> None:
    with connected(path) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def rows(path: Path, query: str) -> list[dict[str, Any]]:
    with connected(path) as connection:
        return [dict(row) for row in connection.exec_driver_sql(query).mappings()]


@contextmanager
def selecting(path: Path) -> Iterator[Any]:
    """Yield what the check of the audit log reads a database with."""
    with connected(path) as connection:

        def select(sql: str) -> Sequence[Sequence[Any]]:
            return connection.exec_driver_sql(sql).all()

        yield select
