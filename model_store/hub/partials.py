"""Keeps the part of a file that has come, on disk and as a running hash."""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from model_store.progress import Counter

BLOCK = 1 << 20  #: bytes that are written and hashed at once, and at most lost in a crash
_LONGEST_SECONDS = 0.2  #: that bytes of a slow line are kept in memory


@dataclass(frozen=True)
class Wanted:
    """A file to fetch, with its addresses, its size and its hash."""

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
    """An unfinished file; what an earlier pull left of it is read and hashed first.

    The hash is made of the bytes on their way to the disk, not by reading them back: right after
    they were written, reading would only ask the memory of the system. What a crash or another
    process could have changed meanwhile, the part of an earlier pull, is read.
    """

    def __init__(self, wanted: Wanted, path: Path, counter: Counter) -> None:
        self.path = path
        self.wanted = wanted
        self._counter = counter
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._due = 0.0  #: when the next write is, at the latest
        self._begin()
        if path.exists() and path.stat().st_size > wanted.size:
            path.unlink()
        path.touch(mode=0o600)
        with path.open("rb", buffering=0) as old:
            while chunk := old.read(BLOCK):
                self._note(chunk)
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

    def _begin(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._git = None if self.wanted.sha256 else git_sha1(self.wanted.size)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def is_right(self) -> bool:
        """Return whether size and hash are those that the hub tells, on disk and in memory."""
        digest = self._git.hexdigest() if self._git else self.sha256
        on_disk = os.fstat(self._file.fileno()).st_size
        return digest == self.wanted.key and self.size == on_disk == self.wanted.size

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
            self._note(bytes(view[:written]) if written < len(block) else block)
            view = view[written:]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def begin_anew(self) -> None:
        """Throw away what has come."""
        self._pending.clear()
        self._pending_bytes = 0
        self._file.truncate(0)
        self._counter.add(self.wanted.path, -self.size)
        self._begin()

    def _note(self, chunk: bytes) -> None:
        """Record that these bytes are in the file now."""
        self._sha256.update(chunk)
        if self._git:
            self._git.update(chunk)
        self.size += len(chunk)
        self._counter.add(self.wanted.path, len(chunk))
