"""Files that clients send with requests: on disk from admission until their job has ended."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from bitinglip.db.retention import Retention
from bitinglip.disk_space import DiskSpace
from bitinglip.errors import DiskFull, QueueFull
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.kinds import upload_paths

_SHARE_OF_A_KEY = 0.5  #: the rest is left to other keys
_LOST_SECONDS = 120  #: after which a file without a job is one that a crash has left


class Uploads:
    """Bounds the bytes of all uploads, and those of one key to half of that."""

    def __init__(self, folder: Path, *, max_bytes: int, space: DiskSpace) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._space = space
        self._retention = Retention(_LOST_SECONDS)
        self._held: dict[str, tuple[str, int]] = {}  #: by job: its key, and the bytes
        self._of_keys: Counter[str] = Counter()
        self.bytes = 0

    async def save(self, job: Job, files: Mapping[str, bytes]) -> None:
        """Write a job's files, by the names of its fields, to the paths in the job.

        Raises QueueFull if its key has too many on disk, DiskFull if all have or the disk is full.
        """
        self._take(job, sum(map(len, files.values())))
        paths = upload_paths(job.work)
        try:
            await asyncio.to_thread(
                self._write, {paths[name]: data for name, data in files.items()}
            )
        except BaseException as error:
            self.discard(job)
            if isinstance(error, OSError):
                raise DiskFull() from error
            raise

    def discard(self, job: Job) -> None:
        """Remove a job's files, if it has any; the job is over. Again is no harm."""
        paths = upload_paths(job.work).values()
        if paths:
            self._give_back(job.id)
            asyncio.get_running_loop().run_in_executor(
                None, _remove, [Path(path) for path in paths]
            )

    async def clean(self, is_open: Callable[[str], bool]) -> None:
        """Remove files whose job is unknown, as a crash leaves them. Raises OSError."""
        before = self._retention.oldest().timestamp()
        await asyncio.to_thread(self._remove_lost, before, is_open)
        for job_id in [each for each in self._held if not is_open(each)]:
            if not any(self.folder.glob(f"{job_id}-*")):
                self._give_back(job_id)

    def _take(self, job: Job, size: int) -> None:
        held = self._of_keys[job.key_id]
        if held and held + size > self._max_bytes * _SHARE_OF_A_KEY:
            raise QueueFull(
                "The uploads of this key's unfinished requests are too large; wait for one.",
                details={"bytes_of_key": held},
            )
        if self.bytes and self.bytes + size > self._max_bytes:
            raise DiskFull("The uploads of unfinished requests fill their part of the disk.")
        self._held[job.id] = job.key_id, size
        self._of_keys[job.key_id] += size
        self.bytes += size

    def _give_back(self, job_id: str) -> None:
        key, size = self._held.pop(job_id, ("", 0))
        self.bytes -= size
        self._of_keys[key] -= size
        if not self._of_keys[key]:
            del self._of_keys[key]

    def _write(self, files: Mapping[str, bytes]) -> None:
        self._space.check(sum(map(len, files.values())))
        for path, data in files.items():
            with Path(path).open("xb") as file:
                file.write(data)

    def _remove_lost(self, before: float, is_open: Callable[[str], bool]) -> None:
        for entry in os.scandir(self.folder):
            job_id = entry.name.rpartition("-")[0]
            if not is_open(job_id) and entry.stat().st_mtime < before:
                Path(entry.path).unlink(missing_ok=True)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
