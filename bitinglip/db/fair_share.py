"""Shrinks a table to a bound in bytes, at the cost of the keys that hold most."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, delete, func, select

from bitinglip.db.tables import (
    StoredBatch,
    StoredDownload,
    StoredFile,
    StoredResponse,
    StoredTask,
)


async def shrink(
    session: AsyncSession,
    table: type[StoredFile | StoredTask | StoredResponse | StoredBatch | StoredDownload],
    moment: datetime | None,
    most: int,
) -> None:
    """Delete the oldest rows of the keys that hold most, until all rows hold ``most`` bytes.

    ``moment`` is the column that rows are ordered by; those without one are left alone.
    """
    there = col(moment).is_not(None)
    sums = select(col(table.key_id), func.sum(table.bytes)).where(there).group_by(table.key_id)
    sizes = {key: int(size) for key, size in await session.execute(sums)}
    if sum(sizes.values()) <= most:
        return
    newer = func.sum(table.bytes).over(
        partition_by=col(table.key_id), order_by=(col(moment).desc(), col(table.id).desc())
    )
    rows = select(col(table.id).label("id"), newer.label("bytes")).where(there).subquery()
    over = select(rows.c.id).where(rows.c.bytes > share_of_each(sizes, most))
    await session.execute(delete(table).where(col(table.id).in_(over)))


def share_of_each(sizes: Mapping[str, int], most: int) -> int:
    """Return how much each key may hold, so that all hold ``most`` and small ones lose nothing."""
    left, share = most, 0
    rest = sorted(sizes.values())
    for number, size in enumerate(rest):
        share = left // (len(rest) - number)
        if size > share:
            return share
        left -= size
    return max(rest, default=0)
