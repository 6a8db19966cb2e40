"""Keeps batches in the database: each change of state is there before clients see it."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
import structlog
from sqlalchemy import ColumnElement
from sqlmodel import col, delete, select, update

from bitinglip.access.credentials import Credential
from bitinglip.db.database import Database
from bitinglip.db.dialects import insert
from bitinglip.db.fair_share import shrink
from bitinglip.db.retention import Retention
from bitinglip.db.tables import StoredBatch
from bitinglip.gateways.owner import ALONE, claimable, ownerless
from bitinglip.wire.batches import Batch

log = structlog.get_logger(__name__)

_ROW_BYTES = 500  #: of the other columns and the index, roughly
MOST_BYTES = 64 << 20  #: of ended batches; the key that holds most loses its oldest first

#: states of a batch that may be cancelled
CANCELLABLE = ("validating", "in_progress")
_OPEN = col(StoredBatch.ended_at).is_(None)


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
        batch = msgspec.json.decode(row.batch, type=Batch)
        if row.cancel_asked and batch.status in CANCELLABLE:  # its owner does not know yet
            batch.status, batch.cancelling_at = "cancelling", int(time.time())
        return cls(batch, credential)

    @classmethod
    def each(cls, rows: Iterable[StoredBatch]) -> "list[KeptBatch]":
        """Read rows, all but those that another version of the server wrote in another way."""
        found = []
        for row in rows:
            try:
                found.append(cls.of(row))
            except (msgspec.DecodeError, ValueError):
                log.warning("a batch of another version cannot be read", batch=row.id)
        return found


class BatchRows:
    """Reads and writes the table of batches; ended ones are kept for ``retention`` seconds."""

    def __init__(self, db: Database, *, retention: float, owner: str = ALONE) -> None:
        """``owner``: this server's name among those that share the database."""
        self._db = db
        self._owner = owner
        self._retention = Retention(retention)

    async def save(self, kept: KeptBatch) -> bool:
        """Write a batch as it is now; return False where it is another server's by now.

        Raises DiskFull or DatabaseUnavailable.
        """
        batch = msgspec.json.encode(kept.batch)
        ended_at = datetime.now(UTC) if kept.batch.ended else None
        row = {
            "id": kept.batch.id,
            "key_id": kept.key_id,
            "credential": msgspec.msgpack.encode(kept.credential),
            "batch": batch,
            "bytes": _ROW_BYTES + len(batch),
            "ended_at": ended_at,
            "gateway": self._owner,
        }
        changed = {name: row[name] for name in ("batch", "bytes", "ended_at")}
        async with self._db.write() as session:
            added = insert(session, StoredBatch).values(row)
            again = added.on_conflict_do_update(
                index_elements=["id"], set_=changed, where=self._mine()
            )
            saved = await session.scalars(again.returning(col(StoredBatch.id)))
            return saved.first() is not None

    async def find(self, batch_id: str) -> KeptBatch | None:
        async with self._db.read() as session:
            row = await session.get(StoredBatch, batch_id)
        return None if row is None else next(iter(KeptBatch.each([row])), None)

    async def open(self) -> list[KeptBatch]:
        """Take up the batches that have not ended, and are this server's or have no living owner.

        The oldest comes first; one that cannot be read is left to a start of another version.
        Raises DiskFull or DatabaseUnavailable.
        """
        return await self._take(claimable(StoredBatch.gateway, self._owner))

    async def take_up(self) -> list[KeptBatch]:
        """Take up the batches of servers that have ended, each once; raises as ``open`` does."""
        left = ownerless(StoredBatch.gateway, self._owner)
        async with self._db.read() as session:
            found = select(col(StoredBatch.id)).where(left, _OPEN).limit(1)
            if (await session.scalars(found)).first() is None:
                return []
        return await self._take(left)

    async def _take(self, which: ColumnElement[bool]) -> "list[KeptBatch]":
        query = select(StoredBatch).where(which, _OPEN).order_by(col(StoredBatch.id))
        async with self._db.write() as session:
            rows = (await session.scalars(query)).all()
            for row in rows:
                row.gateway = self._owner
        return KeptBatch.each(rows)

    async def is_own(self, batch_id: str) -> bool:
        """Return whether a batch is this server's still. Raises DatabaseUnavailable."""
        if self._owner == ALONE:
            return True
        async with self._db.read() as session:
            found = select(col(StoredBatch.gateway)).where(col(StoredBatch.id) == batch_id)
            return (await session.scalars(found)).first() == self._owner

    async def elsewhere(self) -> "list[KeptBatch]":
        """Return the batches that other servers have not ended. Raises DatabaseUnavailable."""
        if self._owner == ALONE:
            return []
        async with self._db.read() as session:
            rows = await session.scalars(select(StoredBatch).where(~self._mine(), _OPEN))
            return KeptBatch.each(rows)

    async def ask_cancel(self, batch_id: str) -> None:
        """Have the server that owns a batch cancel it. Raises DiskFull or DatabaseUnavailable."""
        async with self._db.write() as session:
            asked = update(StoredBatch).where(col(StoredBatch.id) == batch_id, _OPEN)
            await session.execute(asked.values(cancel_asked=True))

    async def to_cancel(self) -> "list[str]":
        """Return this server's batches that others were asked to cancel."""
        mine = (self._mine(), col(StoredBatch.cancel_asked))
        async with self._db.read() as session:
            return [*await session.scalars(select(col(StoredBatch.id)).where(*mine, _OPEN))]

    def _mine(self) -> ColumnElement[bool]:
        return col(StoredBatch.gateway) == self._owner

    async def list(self, *, key_id: str | None, after: str | None, most: int) -> list[KeptBatch]:
        """Return so many batches that are older than one, of a key or of all, the newest first."""
        query = select(StoredBatch)
        if key_id is not None:
            query = query.where(col(StoredBatch.key_id) == key_id)
        if after is not None:
            query = query.where(col(StoredBatch.id) < after)
        async with self._db.read() as session:
            rows = await session.scalars(query.order_by(col(StoredBatch.id).desc()).limit(most))
            return KeptBatch.each(rows)

    async def clean(self) -> None:
        """Remove ended batches that are too old, or hold too much.

        Raises DiskFull or DatabaseUnavailable.
        """
        async with self._db.write() as session:
            expired = col(StoredBatch.ended_at) < self._retention.oldest()
            await session.execute(delete(StoredBatch).where(expired))
            await shrink(session, StoredBatch, StoredBatch.ended_at, MOST_BYTES)
