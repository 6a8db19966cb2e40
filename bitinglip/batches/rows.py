"""Keeps batches in the database: each change of state is there before clients see it."""

from datetime import UTC, datetime

import msgspec
from sqlmodel import col, delete, select

from bitinglip.access.credentials import Credential
from bitinglip.db.database import Database
from bitinglip.db.dialects import insert
from bitinglip.db.fair_share import shrink
from bitinglip.db.retention import Retention
from bitinglip.db.tables import StoredBatch
from bitinglip.wire.batches import Batch

_ROW_BYTES = 500  #: of the other columns and the index, roughly
MOST_BYTES = 64 << 20  #: of ended batches; the key that holds most loses its oldest first


class KeptBatch:
    """Holds a batch, and names its key."""

    def __init__(self, batch: Batch, credential: Credential) -> None:
        self.batch = batch
        self.credential = credential

    @property
    def key_id(self) -> str:
        return self.credential.key_id

    @classmethod
    def of(cls, row: StoredBatch) -> "KeptBatch":
        credential = msgspec.msgpack.decode(row.credential, type=Credential)
        return cls(msgspec.json.decode(row.batch, type=Batch), credential)


class BatchRows:
    """Reads and writes the table of batches; ended ones are kept for ``retention`` seconds."""

    def __init__(self, db: Database, *, retention: float) -> None:
        self._db = db
        self._retention = Retention(retention)

    async def save(self, kept: KeptBatch) -> None:
        """Write a batch as it is now. Raises DiskFull or DatabaseUnavailable."""
        batch = msgspec.json.encode(kept.batch)
        ended_at = datetime.now(UTC) if kept.batch.ended else None
        row = {
            "id": kept.batch.id,
            "key_id": kept.key_id,
            "credential": msgspec.msgpack.encode(kept.credential),
            "batch": batch,
            "bytes": _ROW_BYTES + len(batch),
            "ended_at": ended_at,
        }
        changed = {name: row[name] for name in ("batch", "bytes", "ended_at")}
        async with self._db.write() as session:
            added = insert(session, StoredBatch).values(row)
            again = added.on_conflict_do_update(index_elements=["id"], set_=changed)
            await session.execute(again)

    async def find(self, batch_id: str) -> KeptBatch | None:
        async with self._db.read() as session:
            row = await session.get(StoredBatch, batch_id)
        return None if row is None else KeptBatch.of(row)

    async def open(self) -> list[KeptBatch]:
        """Return the batches that have not ended, the oldest first."""
        query = select(StoredBatch).where(col(StoredBatch.ended_at).is_(None))
        async with self._db.read() as session:
            rows = await session.scalars(query.order_by(col(StoredBatch.id)))
            return [KeptBatch.of(row) for row in rows]

    async def list(self, *, key_id: str | None, after: str | None, most: int) -> list[KeptBatch]:
        """Return so many batches that are older than one, of a key or of all, the newest first."""
        query = select(StoredBatch)
        if key_id is not None:
            query = query.where(col(StoredBatch.key_id) == key_id)
        if after is not None:
            query = query.where(col(StoredBatch.id) < after)
        async with self._db.read() as session:
            rows = await session.scalars(query.order_by(col(StoredBatch.id).desc()).limit(most))
            return [KeptBatch.of(row) for row in rows]

    async def clean(self) -> None:
        """Remove ended batches that are too old, or hold too much.

        Raises DiskFull or DatabaseUnavailable.
        """
        async with self._db.write() as session:
            expired = col(StoredBatch.ended_at) < self._retention.oldest()
            await session.execute(delete(StoredBatch).where(expired))
            await shrink(session, StoredBatch, StoredBatch.ended_at, MOST_BYTES)
