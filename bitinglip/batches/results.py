"""Writes the results of a batch: two files that only grow, and say which lines have ended.

A line has ended when its result is on the disk, and never before. Results that come together are
written together, so that many lines cost one wait for the disk.
"""

import asyncio
import os
from pathlib import Path
from typing import NamedTuple, Self

import structlog

from bitinglip.batches.files import sync_folder
from bitinglip.batches.lines import recover
from bitinglip.disk_space import DiskSpace
from bitinglip.errors import DiskFull
from bitinglip.wire.batches import Usage

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0


class Result(NamedTuple):
    """Holds one line of the results; it goes to the file of errors if the request ``failed``."""

    mark: bytes
    line: bytes
    failed: bool
    usage: Usage = Usage()


class Results:
    """Writes the results of one batch, each once."""

    def __init__(self, output: Path, errors: Path, space: DiskSpace) -> None:
        self.done: set[bytes] = set()  #: marks of the lines that have ended
        self.completed = 0
        self.failed = 0
        self.usage = Usage()
        self._space = space
        self._paths = (output, errors)
        self._sizes = [0, 0]  #: of what is on the disk for certain
        self._waiting: list[tuple[Result, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, output: Path, errors: Path, space: DiskSpace) -> Self:
        """Take over what an earlier run of the server has written. Raises OSError."""
        results = cls(output, errors, space)
        for failed, path in enumerate(results._paths):
            found = await asyncio.to_thread(recover, path)
            results._sizes[failed] = found.size
            results._count(found.marks, found.usage, failed=bool(failed))
        return results

    async def add(self, results: list[Result]) -> None:
        """Write results; they are on the disk when this returns.

        A failing disk delays that; it loses nothing.
        """
        loop = asyncio.get_running_loop()
        written = [(each, loop.create_future()) for each in results]
        self._waiting += written
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="results of a batch")
        for _, future in written:
            await future

    async def settle(self) -> None:
        """Wait until all that was added is on the disk."""
        if self._writer is not None:
            await asyncio.shield(self._writer)

    async def _write_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            for failed, path in enumerate(self._paths):
                own = [each for each, _ in group if each.failed is bool(failed)]
                if own:
                    await self._write(failed, path, b"".join(each.line for each in own))
                    usage = Usage()
                    for each in own:
                        usage.add(each.usage)
                    self._count([each.mark for each in own], usage, failed=bool(failed))
            for _, future in group:
                if not future.done():
                    future.set_result(None)

    async def _write(self, failed: int, path: Path, data: bytes) -> None:
        size, told = self._sizes[failed], False
        while True:
            try:
                end = await asyncio.to_thread(_append, path, size, data, self._space)
            except (OSError, DiskFull) as error:
                if not told:
                    log.warning("results of a batch cannot be written yet", reason=str(error))
                told = True
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._sizes[failed] = end
                return

    def _count(self, marks: list[bytes], usage: Usage, *, failed: bool) -> None:
        self.done.update(marks)
        self.usage.add(usage)
        if failed:
            self.failed += len(marks)
        else:
            self.completed += len(marks)


def _append(path: Path, size: int, data: bytes, space: DiskSpace) -> int:
    """Write behind the first ``size`` bytes, in place of what an attempt before has left there.

    Returns the new size. A file that has been removed begins empty. Raises OSError or DiskFull.
    """
    space.check(len(data))
    new = not path.exists()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
        start = min(size, os.fstat(file.fileno()).st_size)
        file.truncate(start)
        file.seek(start)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)
    return start + len(data)
