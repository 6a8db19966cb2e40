"""Counts changes of tables that servers hold in memory, so that others reload them."""

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from bitinglip.db.dialects import insert
from bitinglip.db.tables import Change

KEYS, TOKENS, CACHE = "keys", "revoked tokens", "cached answers"


async def count_change(session: AsyncSession, what: str) -> int:
    """Count a change of a table, in the transaction that makes it; return how many there are."""
    added = insert(session, Change).values(id=what, count=1)
    more = {"count": col(Change.count) + 1}
    again = added.on_conflict_do_update(index_elements=["id"], set_=more)
    return (await session.scalars(again.returning(col(Change.count)))).one()


async def counts(session: AsyncSession) -> dict[str, int]:
    """Return the number of changes by table."""
    return {row.id: row.count for row in await session.scalars(select(Change))}
