"""Keeps files that tasks made: their bytes are in the home's ``files/``, their owners in the
database.

Workers write the bytes, so that no image passes the event loop. A file without a row belongs
to a task that is under way, or was answered with its bytes; it is removed soon after.
"""

import asyncio
import base64
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlmodel import col, delete, select

from bitinglip.db.database import Database
from bitinglip.db.dialects import insert
from bitinglip.db.fair_share import shrink
from bitinglip.db.retention import Retention
from bitinglip.db.tables import StoredFile
from bitinglip.errors import FileGone
from bitinglip.scheduling.event_log import EventLog
from workers import protocol

MEDIA_TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
}
PREFIX = "/api/v1/files/"
UNCLAIMED_SECONDS = 120.0  #: that a file without a row is left, so that its readers can finish
CLEAN_SECONDS = 60.0  #: between two calls of ``clean``

IsOpen = Callable[[str], bool]  #: whether a task of that id has not ended yet


@dataclass(frozen=True, slots=True)
class OutputFile:
    """Describes one file of a task that succeeded."""

    id: str
    format: str
    bytes: int

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES.get(self.format, "application/octet-stream")


def outputs_of(event_log: EventLog) -> Iterator[OutputFile]:
    """Yield the files that a job has made, in order; none while it runs."""
    match event_log.final:
        case protocol.ImageDone(images=images):
            for index, image in enumerate(images):
                name = protocol.image_file_name(event_log.job.id, index, image.format)
                yield OutputFile(name, image.format, image.bytes)
        case protocol.SpeechDone(format=audio, bytes=size):
            yield OutputFile(protocol.audio_file_name(event_log.job.id, audio), audio, size)


class Files:
    """Stores files for ``retention`` seconds, and at most ``max_bytes`` of them in all."""

    def __init__(
        self,
        db: Database,
        folder: Path,
        *,
        retention: float,
        max_bytes: int,
        unclaimed: float = UNCLAIMED_SECONDS,
    ) -> None:
        """``unclaimed``: seconds for which a file is left that no row names, and no open task."""
        self.folder = folder
        self._unclaimed_seconds = unclaimed
        self._db = db
        self._retention = Retention(retention)
        self._max_bytes = max_bytes
        self._held: dict[str, bytes] = {}  #: files that are read from memory

    # ---- what comes in ---------------------------------------------------------------------------

    async def register(self, event_log: EventLog) -> None:
        """Let the owner of a job fetch its files until they expire; a repeat changes nothing."""
        job = event_log.job
        rows = [
            {
                "id": output.id,
                "task_id": job.id,
                "key_id": job.key_id,
                "kind": job.kind,
                "model": job.model,
                "media_type": output.media_type,
                "bytes": output.bytes,
                "created_at": datetime.now(UTC),
            }
            for output in outputs_of(event_log)
        ]
        if rows:
            async with self._db.write() as session:
                added = insert(session, StoredFile).values(rows)
                await session.execute(added.on_conflict_do_nothing())

    @contextmanager
    def holding(self, files: Mapping[str, bytes]) -> Iterator[None]:
        """Let files be read that are in memory, and not on the disk."""
        self._held.update(files)
        try:
            yield
        finally:
            for name in files:
                del self._held[name]

    # ---- what goes out ---------------------------------------------------------------------------

    async def get(self, file_id: str) -> StoredFile:
        """Return the row of a file. Raises FileGone if there is none, or it has expired."""
        query = select(StoredFile).where(
            StoredFile.id == file_id, col(StoredFile.created_at) >= self._retention.oldest()
        )
        async with self._db.read() as session:
            row = (await session.scalars(query)).first()
        if row is None or not await asyncio.to_thread(self.path(row).is_file):
            raise FileGone()
        return row

    def path(self, row: StoredFile) -> Path:
        return self.folder / row.id

    async def inline_bytes(self, answer: dict[str, Any], most: int | None = None) -> dict[str, Any]:
        """Put the bytes of files into an InferenceResponse; null for expired files.

        Where they are more than ``most`` bytes, links stand there.
        """
        result = answer.get("result") or {}
        if most is not None:
            names = [part["file"] for part in _parts(result) if "file" in part]
            if await asyncio.to_thread(_size, [self.folder / name for name in names]) > most:
                return {**answer, "result": _linked(result)}
        if "images" in result:
            filled = [await self._filled(image, "b64") for image in result["images"]]
            return {**answer, "result": {**result, "images": filled}}
        if "audio" in result:
            return {**answer, "result": await self._filled(result, "audio")}
        return answer

    async def _filled(self, part: dict[str, Any], name: str) -> dict[str, Any]:
        """Replace the file's name in a part by its bytes under ``name``."""
        if "file" not in part:
            return part
        text = await self.base64(part["file"])
        return {name: text} | {k: v for k, v in part.items() if k not in (name, "file")}

    async def read(self, file_id: str) -> bytes | None:
        """Read a file; None if it has expired."""
        if (held := self._held.get(file_id)) is not None:
            return held
        return await asyncio.to_thread(_read, self.folder / file_id)

    async def base64(self, file_id: str) -> msgspec.Raw | None:
        """Read a file as a JSON string in base64; None if it has expired."""
        held = self._held.get(file_id)
        return await asyncio.to_thread(_base64_json, held, self.folder / file_id)

    # ---- what goes away --------------------------------------------------------------------------

    async def clean(self, is_open: IsOpen) -> None:
        """Remove rows that have expired or are too many, and files that no key may fetch.

        Raises OSError, DiskFull or DatabaseUnavailable.
        """
        try:
            await self._expire_rows()
        finally:  # also while the disk is full and the database takes no change: it gives room
            # The names first: a file whose row comes between the two looks is in neither.
            old = await asyncio.to_thread(self._unclaimed, is_open)
            async with self._db.read() as session:
                kept = set(await session.scalars(select(StoredFile.id)))
            await asyncio.to_thread(_remove, [path for path in old if path.name not in kept])

    async def _expire_rows(self) -> None:
        async with self._db.write() as session:
            expired = col(StoredFile.created_at) < self._retention.oldest()
            await session.execute(delete(StoredFile).where(expired))
            await shrink(session, StoredFile, StoredFile.created_at, self._max_bytes)

    def _unclaimed(self, is_open: IsOpen) -> list[Path]:
        """List old files of jobs that are over; those with a row are among them."""
        before = self._retention.now() - self._unclaimed_seconds
        self.folder.mkdir(mode=0o700, exist_ok=True)  # it may have been removed
        return [
            Path(entry.path)
            for entry in os.scandir(self.folder)
            if entry.stat().st_mtime <= before and not is_open(entry.name.rpartition("-")[0])
        ]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _parts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what may name a file: each image, or the result itself."""
    return result.get("images") or [result]


def _linked(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with links in the places of its files."""
    if "images" in result:
        return {**result, "images": [_linked(image) for image in result["images"]]}
    if "file" not in result:
        return result
    rest = {name: each for name, each in result.items() if name not in ("b64", "audio", "file")}
    return {"url": PREFIX + result["file"], **rest}


def _size(paths: Sequence[Path]) -> int:
    """Return the bytes of files; one that has expired has none."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _base64_json(held: bytes | None, path: Path) -> msgspec.Raw | None:
    """Read a file as a JSON string, which the encoder of the answer copies as it is."""
    data = _read(path) if held is None else held
    return None if data is None else msgspec.Raw(b'"%b"' % base64.b64encode(data))
