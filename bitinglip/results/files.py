"""Images and sounds that tasks made: bytes in the home's ``files/``, owners in the database.

Workers write the bytes, so that no picture passes the event loop. A file without a row belongs
to a task that is under way, or was answered with its bytes; it is removed soon after.
"""

import asyncio
import base64
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import structlog
from sqlalchemy.dialects.sqlite import insert
from sqlmodel import col, delete, func, select

from bitinglip.db.database import Database
from bitinglip.db.tables import StoredFile
from bitinglip.errors import DiskFull, FileGone
from bitinglip.scheduling.event_log import EventLog
from workers import protocol

log = structlog.get_logger(__name__)

MEDIA_TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
}
PREFIX = "/api/v1/files/"
_UNCLAIMED_SECONDS = 120  #: that a file without a row is left, so that whoever reads it can end
_CLEAN_SECONDS = 60.0

IsOpen = Callable[[str], bool]  #: whether a task of that id has not ended yet


@dataclass(frozen=True, slots=True)
class Output:
    """One file of a task that succeeded."""

    id: str
    format: str
    bytes: int

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES.get(self.format, "application/octet-stream")


def outputs_of(event_log: EventLog) -> Iterator[Output]:
    """The files that a job has made, in order; none while it runs."""
    match event_log.final:
        case protocol.ImageDone(pictures=pictures):
            for index, picture in enumerate(pictures):
                name = protocol.image_file_name(event_log.job.id, index, picture.format)
                yield Output(name, picture.format, picture.bytes)
        case protocol.SpeechDone(format=audio, bytes=size):
            yield Output(protocol.audio_file_name(event_log.job.id, audio), audio, size)


class Files:
    """``retention`` in seconds; ``max_bytes`` of files that can be fetched, in all."""

    def __init__(
        self,
        db: Database,
        folder: Path,
        *,
        retention: float,
        max_bytes: int,
    ) -> None:
        self.folder = folder
        self._db = db
        self._retention = timedelta(seconds=retention)
        self._max_bytes = max_bytes

    # ---- what comes in ---------------------------------------------------------------------------

    async def receive(self, name: str, data: bytes) -> Path:
        """Write what a client sent, for the worker to read. Raises DiskFull."""
        path = self.folder / name
        try:
            await asyncio.to_thread(_write, path, data)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise DiskFull() from error
        return path

    async def keep(self, event_log: EventLog) -> None:
        """Let the files of a job be fetched by its owner until they expire; again is no harm."""
        job = event_log.job
        rows = [
            {
                "id": output.id,
                "task_id": job.id,
                "key_id": job.key_id,
                "kind": job.kind,
                "media_type": output.media_type,
                "bytes": output.bytes,
                "created_at": datetime.now(UTC),
            }
            for output in outputs_of(event_log)
        ]
        if rows:
            async with self._db.write() as session:
                await session.execute(insert(StoredFile).values(rows).on_conflict_do_nothing())

    # ---- what goes out ---------------------------------------------------------------------------

    async def get(self, file_id: str) -> StoredFile:
        """Raises FileGone for one that never was, or has expired."""
        query = select(StoredFile).where(
            StoredFile.id == file_id, col(StoredFile.created_at) >= self._oldest()
        )
        async with self._db.read() as session:
            row = (await session.scalars(query)).first()
        if row is None or not self.path(row).is_file():
            raise FileGone()
        return row

    def path(self, row: StoredFile) -> Path:
        return self.folder / row.id

    async def fill(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An InferenceResponse with the bytes it is to hold; null for those that have expired."""
        result = answer.get("result") or {}
        if "images" in result:
            filled = [await self._filled(image, "b64") for image in result["images"]]
            return {**answer, "result": {**result, "images": filled}}
        if "audio" in result:
            return {**answer, "result": await self._filled(result, "audio")}
        return answer

    async def _filled(self, part: dict[str, Any], name: str) -> dict[str, Any]:
        """With a file's bytes under ``name`` in place of the file's own name."""
        if "file" not in part:
            return part
        text = await self.base64(part["file"])
        return {name: text} | {k: v for k, v in part.items() if k not in (name, "file")}

    async def read(self, file_id: str) -> bytes | None:
        """A file's bytes; None if it has gone."""
        return await asyncio.to_thread(_read, self.folder / file_id)

    async def base64(self, file_id: str) -> msgspec.Raw | None:
        """A file's bytes as a JSON string; None if it has gone."""
        return await asyncio.to_thread(_base64_json, self.folder / file_id)

    # ---- what goes away --------------------------------------------------------------------------

    async def run_cleanup(self, is_open: IsOpen) -> None:
        """Remove what has expired, for as long as the server runs."""
        while True:
            try:
                await self.clean(is_open)
            except (OSError, DiskFull):
                log.exception("expired files could not be removed")
            await asyncio.sleep(_CLEAN_SECONDS)

    async def clean(self, is_open: IsOpen) -> None:
        """Remove rows that have expired or are too many, and files that nobody may fetch."""
        async with self._db.write() as session:
            expired = col(StoredFile.created_at) < self._oldest()
            await session.execute(delete(StoredFile).where(expired))
            total = (await session.scalars(select(func.sum(StoredFile.bytes)))).one() or 0
            if total > self._max_bytes:
                oldest = select(StoredFile).order_by(col(StoredFile.created_at))
                for row in await session.scalars(oldest):
                    if total <= self._max_bytes:
                        break
                    total -= row.bytes
                    await session.delete(row)
        async with self._db.read() as session:
            kept = set(await session.scalars(select(StoredFile.id)))
        await asyncio.to_thread(self._remove_unclaimed, kept, is_open)

    def _remove_unclaimed(self, kept: set[str], is_open: IsOpen) -> None:
        before = time.time() - _UNCLAIMED_SECONDS
        for entry in os.scandir(self.folder):
            task_id = entry.name.rpartition("-")[0]
            if entry.name in kept or is_open(task_id) or entry.stat().st_mtime > before:
                continue
            Path(entry.path).unlink(missing_ok=True)

    def _oldest(self) -> datetime:
        return datetime.now(UTC) - self._retention


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _base64_json(path: Path) -> msgspec.Raw | None:
    """As JSON already: what encodes the answer has nothing to look at any more."""
    data = _read(path)
    return None if data is None else msgspec.Raw(b'"%b"' % base64.b64encode(data))
