"""Selects rows by their owner, where several servers share a database.

Each row of open work names the server that does it. A server that has ended, or died, is no longer
in the table of servers; then any server may claim its rows, and the first one to do so owns them.
"""

from typing import Any

from sqlalchemy import ColumnElement, true
from sqlmodel import col, select

from bitinglip.db.tables import Gateway

#: the owner of all rows where one server uses the database
ALONE = ""


def ownerless(column: Any, own: str) -> ColumnElement[bool]:
    """Return the rows that no living server owns: all, where one server uses the database."""
    if own == ALONE:
        return true()
    return col(column).not_in(select(col(Gateway.id)))


def claimable(column: Any, own: str) -> ColumnElement[bool]:
    """Return the rows that a server claims at its start: its own, and those without an owner."""
    return ownerless(column, own) | (col(column) == own)
