"""Says whose rows are which, where several servers share a database.

Each row of open work names the server that does it. A server that has ended, or died, is in the
table of servers no more; then its rows are anybody's, and the first that takes one has it.
"""

from typing import Any

from sqlalchemy import ColumnElement, true
from sqlmodel import col, select

from bitinglip.db.tables import Gateway

#: the owner of all rows where one server has the database alone
ALONE = ""


def ownerless(column: Any, own: str) -> ColumnElement[bool]:
    """Return which rows no living server owns: all, where this one has the database alone."""
    if own == ALONE:
        return true()
    return col(column).not_in(select(col(Gateway.id)))


def to_take_up(column: Any, own: str) -> ColumnElement[bool]:
    """Return which rows a server takes up at its start: its own, and those that nobody owns."""
    return ownerless(column, own) | (col(column) == own)
