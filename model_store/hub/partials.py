"""Keeps the part of a file that has come, and hashes the whole as the disk has it."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from model_store.progress import Counter

BLOCK = 1 << 20  #: bytes that are written at once, and at most lost in a crash
_LONGEST_SECONDS = 0.2  #: that bytes of a slow line are kept in memory


@dataclass(frozen=True)
class Wanted:
    """Describes a file to fetch, with its addresses, its size and its hash."""

    path: str
    urls: tuple[str, ...]  #: of the hub, then of its mirrors
    size: int
    sha256: str | None  #: of files in large-file storage
    git_sha1: str | None  #: of the others: git's blob id

    @property
    def key(self) -> str:
        return self.sha256 or self.git_sha1 or ""


def git_sha1(size: int) -> "hashlib._Hash":
    """Begin git's blob id: the SHA-1 of a header and the content."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


class Part:
    """Describes an unfinished file, which begins with what an earlier pull left of it.

    The hash is made of the whole file once it is on the disk, by reading it back: of what came in
    this pull and in earlier ones alike. A file that fits in memory is read from there, and the
    disk is not asked; one that does not is read from the disk.
    """

    def __init__(self, wanted: Wanted, path: Path, counter: Counter) -> None:
        self.path = path
        self.wanted = wanted
        self._counter = counter
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._due = 0.0  #: when the next write is, at the latest
        self.sha256 = ""  #: of the file, once it was verified
        if path.exists() and path.stat().st_size > wanted.size:
            path.unlink()
        path.touch(mode=0o600)
        self.size = path.stat().st_size
        counter.add(wanted.path, self.size)
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def verify(self, check: Callable[[], None]) -> bool:
        """Return whether size and hash are those that the hub tells; ``sha256`` is known then.

        Reads the file, once it is on the disk. ``check`` is called in between, and may raise.
        """
        os.fsync(self._file.fileno())
        digest = hashlib.sha256()
        git = None if self.wanted.sha256 else git_sha1(self.wanted.size)
        size = 0
        with self.path.open("rb", buffering=0) as file:
            while chunk := file.read(BLOCK):
                check()
                size += len(chunk)
                digest.update(chunk)
                if git:
                    git.update(chunk)
        self.sha256 = digest.hexdigest()
        return size == self.wanted.size and self.wanted.key == (git or digest).hexdigest()

    @property
    def coming(self) -> int:
        """Return the bytes that have come, written or not."""
        return self.size + self._pending_bytes

    def take(self, chunk: bytes) -> bool:
        """Take bytes that came; return whether a block was written."""
        self._pending.append(chunk)
        self._pending_bytes += len(chunk)
        if self._pending_bytes < BLOCK and time.monotonic() < self._due:
            return False
        self.write()
        return True

    def write(self) -> None:
        """Write what has come. Raises OSError; then none of it counts."""
        self._due = time.monotonic() + _LONGEST_SECONDS
        block = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        view = memoryview(block)
        while view:
            written = self._file.write(view)
            self.size += written
            self._counter.add(self.wanted.path, written)
            view = view[written:]

    def restart(self) -> None:
        """Delete the bytes that have come, and start again."""
        self._pending.clear()
        self._pending_bytes = 0
        self._file.truncate(0)
        self._counter.add(self.wanted.path, -self.size)
        self.size = 0
