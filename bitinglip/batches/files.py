"""Keeps clients' files, and those that batches make for them.

Their bytes are in the home's ``batches/``, by id; what has no row there was left by a crash.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import ColumnElement
from sqlmodel import col, delete, func, select

from bitinglip.db.database import Database
from bitinglip.db.dialects import insert
from bitinglip.db.retention import Retention
from bitinglip.db.tables import ClientFile
from bitinglip.errors import DiskFull, FileGone, InvalidRequest, PayloadTooLarge
from bitinglip.results.uploads import ReceivedFile

INPUT, OUTPUT = "batch", "batch_output"
CLEAN_SECONDS = 60.0  #: between two looks for files that are too old
_ROW_BYTES = 4096  #: that each file counts beside its own, so that empty ones are bounded, too
_SHARE_OF_A_KEY = 0.5  #: the rest is left to other keys
_ROWS_AT_ONCE = 500  #: that a statement names; databases bound the values of one
_LOST_SECONDS = 120  #: after which a file without a row is one that a crash has left


def new_id(prefix: str) -> str:
    """Make an id that sorts by time and cannot be guessed."""
    stamp = time.time_ns() // 1_000_000
    return f"{prefix}{stamp:012x}{secrets.token_hex(10)}"


class ClientFiles:
    """Keeps files for ``retention`` seconds, and refuses more than ``max_bytes`` of them."""

    def __init__(self, db: Database, folder: Path, *, retention: float, max_bytes: int) -> None:
        self.folder = folder
        self._db = db
        self._retention = Retention(retention)
        self._max_bytes = max_bytes

    def path(self, file_id: str) -> Path:
        return self.folder / file_id

    async def keep(
        self, received: ReceivedFile, key_id: str, filename: str, lifetime: int | None
    ) -> ClientFile:
        """Keep a file that has arrived, for ``lifetime`` seconds or as long as all.

        It is on the disk when this returns. Raises InvalidRequest for an empty one,
        PayloadTooLarge, DiskFull or DatabaseUnavailable.
        """
        if not received.size:
            raise InvalidRequest("The file is empty.", param="file")
        now = datetime.now(UTC)
        row = ClientFile(
            id=new_id("file-"),
            key_id=key_id,
            purpose=INPUT,
            filename=filename,
            bytes=received.size,
            created_at=now,
            expires_at=None if lifetime is None else now + timedelta(seconds=lifetime),
        )
        path = self.path(row.id)
        try:
            await asyncio.to_thread(_place, received.path, path)
            async with self._db.write() as session:
                sums = select(col(ClientFile.key_id), func.sum(ClientFile.bytes + _ROW_BYTES))
                held = dict((await session.execute(sums.group_by(ClientFile.key_id))).all())
                self._check(held.get(key_id, 0), sum(held.values()), row.bytes + _ROW_BYTES)
                session.add(row)
        except BaseException as error:
            await asyncio.shield(asyncio.to_thread(path.unlink, missing_ok=True))
            if isinstance(error, OSError):
                raise DiskFull() from error
            raise
        return row

    async def register(self, file_id: str, key_id: str, filename: str) -> None:
        """Let a key fetch a file that is there; again notes its size."""
        size = await asyncio.to_thread(os.path.getsize, self.path(file_id))
        values = {
            "id": file_id,
            "key_id": key_id,
            "purpose": OUTPUT,
            "filename": filename,
            "bytes": size,
            "created_at": datetime.now(UTC),
        }
        async with self._db.write() as session:
            added = insert(session, ClientFile).values(values)
            again = added.on_conflict_do_update(index_elements=["id"], set_={"bytes": size})
            await session.execute(again)

    async def get(self, file_id: str) -> ClientFile:
        """Return the row of a file. Raises FileGone if there is none, or it has expired."""
        async with self._db.read() as session:
            query = select(ClientFile).where(col(ClientFile.id) == file_id, ~self._expired())
            row = (await session.scalars(query)).first()
        if row is None:
            raise FileGone()
        return row

    async def delete(self, file_id: str) -> None:
        """Remove a file; one that is being read goes on to be read."""
        async with self._db.write() as session:
            await session.execute(delete(ClientFile).where(col(ClientFile.id) == file_id))
        await asyncio.to_thread(self.path(file_id).unlink, missing_ok=True)

    async def clean(self, in_use: Callable[[str], bool]) -> None:
        """Remove files that have expired and that no open batch needs, and those without a row.

        Raises OSError, DiskFull or DatabaseUnavailable.
        """
        # The names first: a file whose row comes between the two looks is in neither.
        old = await asyncio.to_thread(self._old)
        async with self._db.write() as session:
            expired = await session.scalars(select(col(ClientFile.id)).where(self._expired()))
            gone = [each for each in expired if not in_use(each)]
            for start in range(0, len(gone), _ROWS_AT_ONCE):
                part = gone[start : start + _ROWS_AT_ONCE]
                await session.execute(delete(ClientFile).where(col(ClientFile.id).in_(part)))
            kept = set(await session.scalars(select(col(ClientFile.id))))
        lost = [name for name in old if name not in kept and not in_use(name)]
        await asyncio.to_thread(self._remove, {*lost, *gone})

    def _check(self, own: int, held: int, size: int) -> None:
        if own + size > self._max_bytes * _SHARE_OF_A_KEY:
            raise PayloadTooLarge(
                "The files of this key would take too many bytes; delete some.",
                param="file",
                details={"bytes_of_key": own},
            )
        if held + size > self._max_bytes:
            raise DiskFull("Kept files fill their part of the disk.")

    def _expired(self) -> ColumnElement[bool]:
        own = func.coalesce(col(ClientFile.expires_at) < datetime.now(UTC), False)
        return (col(ClientFile.created_at) < self._retention.oldest()) | own

    def _old(self) -> "list[str]":
        before = self._retention.now() - _LOST_SECONDS
        self.folder.mkdir(mode=0o700, exist_ok=True)  # it may have been removed
        return [each.name for each in os.scandir(self.folder) if each.stat().st_mtime <= before]

    def _remove(self, names: AbstractSet[str]) -> None:
        for name in names:
            self.path(name).unlink(missing_ok=True)

    async def list(
        self, *, key_id: str | None, purpose: str | None, after: str | None, most: int, newest: bool
    ) -> list[ClientFile]:
        """Return so many files that come after one, those of a key or of all, by their ages."""
        own = col(ClientFile.id)
        query = select(ClientFile).where(~self._expired())
        if key_id is not None:
            query = query.where(col(ClientFile.key_id) == key_id)
        if purpose is not None:
            query = query.where(col(ClientFile.purpose) == purpose)
        if after is not None:
            query = query.where(own < after if newest else own > after)
        query = query.order_by(own.desc() if newest else own).limit(most)
        async with self._db.read() as session:
            return [*await session.scalars(query)]


def _place(received: Path, path: Path) -> None:
    """Move a file to where it is kept, so that it outlives a power cut."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with received.open("rb") as file:
        os.fsync(file.fileno())
    received.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
