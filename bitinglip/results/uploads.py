"""Keeps files that clients send with requests: on disk as they arrive, until their
job has ended."""

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitinglip.background import reason
from bitinglip.db.retention import Retention
from bitinglip.disk_space import DiskSpace
from bitinglip.errors import DiskFull, QueueFull
from bitinglip.scheduling.job import Job
from bitinglip.telemetry.health import Health

_SHARE_OF_A_KEY = 0.5  #: the rest is left to other keys
LOST_SECONDS = 120.0  #: after which a file without a job is one that a crash has left
_HEALTH = "task_manager", "uploads"  #: the check and the part that a failing disk degrades


@dataclass(slots=True)
class ReceivedFile:
    """Describes a file of a request that has no job yet; ``owner`` is the request in the books."""

    path: Path
    owner: str
    size: int = 0
    name: str = ""  #: as the client calls it


class Uploads:
    """Bounds the bytes of all uploads, and those of one key to half of that."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        space: DiskSpace,
        health: Health | None = None,
        lost: float = LOST_SECONDS,
    ) -> None:
        """``health`` is told when the disk takes no uploads, and when it does again.

        ``lost``: seconds after which a file that no job needs was left by a crash.
        """
        self._health = health or Health()
        self._incoming: set[str] = set()  #: requests whose files have no job yet
        self.folder = folder
        self._max_bytes = max_bytes
        self._space = space
        self._retention = Retention(lost)
        self._held: dict[str, tuple[str, int]] = {}  #: by job: its key, and the bytes
        self._of_keys: Counter[str] = Counter()
        self.bytes = 0

    def receive(self, key_id: str) -> "Incoming":
        """Begin to take the files of a request. The caller closes what this returns."""
        incoming = Incoming(self, f"incoming-{uuid.uuid4().hex}", key_id)
        self._incoming.add(incoming.id)
        return incoming

    async def save(self, job: Job, files: Mapping[str, bytes | ReceivedFile]) -> None:
        """Write a job's files, by the names of its fields, to the paths in the job.

        Raises QueueFull if its key has too many on disk, DiskFull if all have or the disk is full.
        """
        new = sum(len(file) for file in files.values() if isinstance(file, bytes))
        self.take(job.id, job.key_id, new)
        paths = job.traits.upload_paths()
        try:
            placed = {Path(paths[name]): file for name, file in files.items()}
            await self.to_disk(new, partial(_place, placed))
        except BaseException:
            self.discard(job)
            raise
        for file in files.values():
            if isinstance(file, ReceivedFile):
                self._hand_over(file, job.id)

    async def to_disk(self, size: int, write: Callable[[], None]) -> None:
        """Write so many bytes in a thread. Raises DiskFull."""
        try:
            await asyncio.to_thread(self._checked, size, write)
        except OSError as error:
            self._health.degrade(*_HEALTH, reason(error))
            raise DiskFull() from error
        except DiskFull:
            await self._report()  # the disk may be full, or just this upload too large
            raise
        self._health.recover(*_HEALTH)

    def discard(self, job: Job) -> None:
        """Remove a job's files, if it has any; the job is over. May be called twice."""
        paths = job.traits.upload_paths().values()
        if paths:
            self._give_back(job.id)
            asyncio.get_running_loop().run_in_executor(
                None, _remove, [Path(path) for path in paths]
            )

    async def clean(self, is_open: Callable[[str], bool]) -> None:
        """Remove files whose job is unknown, as a crash leaves them. Raises OSError."""
        before = self._retention.oldest().timestamp()
        await asyncio.to_thread(self.folder.mkdir, mode=0o700, exist_ok=True)
        await asyncio.to_thread(self._remove_lost, before, is_open)
        for job_id in [each for each in self._held if not is_open(each)]:
            if job_id not in self._incoming and not any(self.folder.glob(f"{job_id}-*")):
                self._give_back(job_id)
        await self._report()

    def end(self, incoming: str, paths: list[Path]) -> None:
        """Forget a request that was received, and remove those of its files that no job has."""
        self._incoming.discard(incoming)
        self._give_back(incoming)
        if paths:
            asyncio.get_running_loop().run_in_executor(None, _remove, paths)

    def take(self, owner: str, key_id: str, size: int) -> None:
        """Count so many bytes more of a job or request. Raises QueueFull or DiskFull."""
        own = self._held.get(owner, ("", 0))[1]
        held = self._of_keys[key_id]
        if held > own and held + size > self._max_bytes * _SHARE_OF_A_KEY:
            raise QueueFull(
                "The uploads of this key's unfinished requests are too large; wait for one.",
                details={"bytes_of_key": held},
            )
        if self.bytes > own and self.bytes + size > self._max_bytes:
            raise DiskFull("The uploads of unfinished requests fill their part of the disk.")
        self._held[owner] = key_id, own + size
        self._of_keys[key_id] += size
        self.bytes += size

    def _hand_over(self, file: ReceivedFile, job_id: str) -> None:
        key_id, size = self._held[file.owner]
        self._held[file.owner] = key_id, size - file.size
        self._held[job_id] = key_id, self._held[job_id][1] + file.size

    def _give_back(self, job_id: str) -> None:
        key, size = self._held.pop(job_id, ("", 0))
        self.bytes -= size
        self._of_keys[key] -= size
        if not self._of_keys[key]:
            del self._of_keys[key]

    def _checked(self, size: int, write: Callable[[], None]) -> None:
        """Write where there is room; the folder is made again if it was removed."""
        try:
            self._space.check(size)
            write()
        except FileNotFoundError:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            write()

    async def _report(self) -> None:
        """Say whether the disk has room for uploads, for times in which none are sent."""
        try:
            await asyncio.to_thread(self._space.check)
        except DiskFull as error:
            self._health.degrade(*_HEALTH, error.message)
        else:
            self._health.recover(*_HEALTH)

    def _remove_lost(self, before: float, is_open: Callable[[str], bool]) -> None:
        for entry in os.scandir(self.folder):
            job_id = entry.name.rpartition("-")[0]
            mine = is_open(job_id) or job_id in self._incoming
            if not mine and entry.stat().st_mtime < before:
                Path(entry.path).unlink(missing_ok=True)


class Incoming:
    """Takes the files of one request while it arrives; no descriptor is open between two parts."""

    def __init__(self, uploads: Uploads, name: str, key_id: str) -> None:
        self.id = name
        self._uploads = uploads
        self._key_id = key_id
        self._files: list[ReceivedFile] = []

    def new_file(self) -> ReceivedFile:
        """Begin another file; nothing is written yet."""
        file = ReceivedFile(self._uploads.folder / f"{self.id}-{len(self._files)}", self.id)
        self._files.append(file)
        return file

    async def write(self, file: ReceivedFile, data: bytes | bytearray) -> None:
        """Append to a file. Raises QueueFull or DiskFull."""
        self._uploads.take(self.id, self._key_id, len(data))
        await self._uploads.to_disk(len(data), partial(_append, file, data))
        file.size += len(data)

    def close(self) -> None:
        """Remove the files that no job has taken. May be called twice."""
        files, self._files = self._files, []
        self._uploads.end(self.id, [file.path for file in files])


def _append(file: ReceivedFile, data: bytes | bytearray) -> None:
    """Append to a file that is there, or is new: one that was removed meanwhile stays away."""
    new = os.O_CREAT | os.O_EXCL if not file.size else 0
    with open(
        os.open(file.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | new, 0o600), "ab"
    ) as out:
        out.write(data)


def _place(files: Mapping[Path, bytes | ReceivedFile]) -> None:
    for path, file in files.items():
        if isinstance(file, ReceivedFile):
            os.rename(file.path, path)
        else:
            with path.open("xb") as out:
                out.write(file)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
