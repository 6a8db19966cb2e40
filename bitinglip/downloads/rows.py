"""Keeps downloads in the database: each change of state is there before clients are told."""

import msgspec
from sqlalchemy import true
from sqlmodel import col, delete, func, select

from bitinglip.db.database import Database
from bitinglip.db.dialects import insert
from bitinglip.db.fair_share import shrink
from bitinglip.db.retention import Retention
from bitinglip.db.tables import StoredDownload
from bitinglip.downloads.download import Download
from bitinglip.gateways.owner import ALONE

_ROW_BYTES = 500  #: of the other columns and the indices, roughly
MOST_BYTES = 16 << 20  #: of ended downloads; the key that holds most loses its oldest first
_decoder = msgspec.json.Decoder(Download)


class DownloadRows:
    """Reads and writes the table of downloads; ended ones are kept for ``retention`` seconds.

    Every method raises DatabaseUnavailable; those that write, DiskFull, too.
    """

    def __init__(self, db: Database, *, retention: float, owner: str = ALONE) -> None:
        """``owner``: this server's name among those that share the database."""
        self._db = db
        self._owner = owner
        self._retention = Retention(retention)

    async def save(self, download: Download) -> None:
        """Write a download as it is now."""
        told = msgspec.json.encode(download)
        row = {
            "id": download.id,
            "key_id": download.requester.key_id,
            "model": download.wanted.name,
            "download": told,
            "bytes": _ROW_BYTES + len(told),
            "ended_at": download.finished_at,
            "gateway": self._owner,
        }
        changed = {name: value for name, value in row.items() if name != "id"}
        async with self._db.write() as session:
            added = insert(session, StoredDownload).values(row)
            await session.execute(added.on_conflict_do_update(index_elements=["id"], set_=changed))

    async def find(self, download_id: str) -> Download | None:
        async with self._db.read() as session:
            row = await session.get(StoredDownload, download_id)
        return None if row is None else _decoder.decode(row.download)

    async def last(self, model: str) -> Download | None:
        """Return the newest download of a model."""
        query = select(StoredDownload).where(col(StoredDownload.model) == model)
        async with self._db.read() as session:
            rows = await session.scalars(query.order_by(col(StoredDownload.id).desc()).limit(1))
            row = rows.first()
        return None if row is None else _decoder.decode(row.download)

    async def open(self) -> list[Download]:
        """Return the downloads that have not ended, the oldest first.

        Where servers share the database, this one's: each brings models to a store of its own, and
        goes on with what its own partial files hold.
        """
        table, is_open = StoredDownload, col(StoredDownload.ended_at).is_(None)
        mine = true() if self._owner == ALONE else col(table.gateway).in_([self._owner, ALONE])
        async with self._db.write() as session:
            query = select(table).where(is_open, mine).order_by(col(table.id))
            rows = (await session.scalars(query)).all()
            for row in rows:
                row.gateway = self._owner
        return [_decoder.decode(row.download) for row in rows]

    async def is_elsewhere(self, download_id: str) -> bool:
        """Return whether another server has a download that has not ended."""
        chosen = (col(StoredDownload.id) == download_id, col(StoredDownload.ended_at).is_(None))
        async with self._db.read() as session:
            found = await session.scalars(select(col(StoredDownload.gateway)).where(*chosen))
            return found.first() not in (None, self._owner)

    async def models(self) -> list[str]:
        """Return the models that there are downloads of."""
        async with self._db.read() as session:
            return list(await session.scalars(select(col(StoredDownload.model)).distinct()))

    async def page(
        self, models: list[str] | None, *, limit: int, offset: int
    ) -> tuple[list[Download], int]:
        """Return a part of the list, the newest first, and how many there are.

        ``models``: those whose downloads are listed; None: all.
        """
        chosen = [] if models is None else [col(StoredDownload.model).in_(models)]
        query = select(StoredDownload).where(*chosen).order_by(col(StoredDownload.id).desc())
        count = select(func.count()).select_from(StoredDownload).where(*chosen)
        async with self._db.read() as session:
            rows = await session.scalars(query.limit(limit).offset(offset))
            found = [_decoder.decode(row.download) for row in rows]
            return found, int((await session.execute(count)).scalar_one())

    async def remove(self, download_id: str) -> None:
        """Remove a download that has ended."""
        async with self._db.write() as session:
            await session.execute(
                delete(StoredDownload).where(col(StoredDownload.id) == download_id)
            )

    async def clean(self) -> None:
        """Remove ended downloads that are too old, or hold too much."""
        async with self._db.write() as session:
            expired = col(StoredDownload.ended_at) < self._retention.oldest()
            await session.execute(delete(StoredDownload).where(expired))
            await shrink(session, StoredDownload, StoredDownload.ended_at, MOST_BYTES)
