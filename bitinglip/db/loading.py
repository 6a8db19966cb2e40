"""Reads whole tables at the start, where damage stops the server with one clear message."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError, ProgrammingError

from bitinglip.db.files import DatabaseError
from bitinglip.errors import DatabaseUnavailable, InvalidRequest


@contextmanager
def loading(table: str) -> Iterator[None]:
    """Raise DatabaseError for rows that cannot be read, or mean nothing to the block."""
    try:
        yield
    except (
        ValueError,
        TypeError,
        InvalidRequest,
        DatabaseUnavailable,
        OperationalError,  # a column is missing
        ProgrammingError,  # as PostgreSQL says it
    ) as error:
        raise DatabaseError(
            f"the table of {table} is damaged; restore a backup (see docs/backups.md)"
        ) from error
