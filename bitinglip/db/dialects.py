"""Writes what SQLite and PostgreSQL spell differently, in the dialect of a session's database."""

from typing import Any

from sqlalchemy import JSON, ColumnElement, String, cast, func
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

Insert = postgresql.Insert | sqlite.Insert


def insert(session: AsyncSession, table: Any) -> Insert:
    """Return an INSERT into a table that takes ``on_conflict_do_update`` and ``_do_nothing``."""
    return postgresql.insert(table) if _is_postgres(session) else sqlite.insert(table)


def without(session: AsyncSession, column: Any, name: str) -> ColumnElement[Any]:
    """Return a column of JSON objects without one of their fields."""
    if not _is_postgres(session):
        return func.json_remove(column, f"$.{name}", type_=JSON)
    # Its binary form knows no character 0, which texts of models and clients may hold.
    known = func.replace(cast(column, String), r"\u0000", r"\ufffd")
    return cast(cast(known, postgresql.JSONB).op("-")(cast(name, String)), JSON)


def _is_postgres(session: AsyncSession) -> bool:
    return session.get_bind().dialect.name == "postgresql"
