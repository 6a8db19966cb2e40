"""Takes the contents of files as they come: each in a part, which becomes a blob once it is whole.

A part outlives the process that writes it; who takes it up goes on where it ends.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
from pathlib import Path

_CHUNK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NoRoom(Exception):
    """The files have no room on the node; the message says why, and which setting bounds it."""


class Damaged(Exception):
    """A content has come that is not the announced one."""


class Part:
    """Holds the beginning of one content, under a lock that ends with its process."""

    def __init__(self, path: Path, sha256: str, size: int, fd: int) -> None:
        self.sha256 = sha256
        self.size = size
        self.have = 0  #: bytes of it that are there
        self._path = path
        self._fd = fd
        self._digest = hashlib.sha256()

    @classmethod
    def take(cls, folder: Path, sha256: str, size: int) -> "Part | None":
        """Return the part of a content, made if there is none; None if another one writes it.

        Raises OSError.
        """
        path = folder / f"{sha256}.{size}"
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(path, flags, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:  # it became a blob, or was removed, in this moment
                    return cls(path, sha256, size, fd)
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def resume(self) -> None:
        """Read what an earlier process has left, so that the rest can be added. Raises OSError."""
        if os.fstat(self._fd).st_size > self.size:
            self.restart()
        while self.have < self.size and (
            piece := os.pread(self._fd, min(_CHUNK, self.size - self.have), self.have)
        ):
            self._digest.update(piece)
            self.have += len(piece)

    def restart(self) -> None:
        """Forget what is there. Raises OSError."""
        os.ftruncate(self._fd, 0)
        self.have, self._digest = 0, hashlib.sha256()

    def add(self, piece: bytes) -> None:
        """Write the next bytes. Raises NoRoom or OSError."""
        self._digest.update(piece)
        view = memoryview(piece)
        try:
            while view:
                written = os.pwrite(self._fd, view, self.have)
                self.have += written
                view = view[written:]
        except OSError as error:
            if error.errno in _FULL:
                raise NoRoom("its disk is full") from error
            raise

    def check(self) -> None:
        """Return once the content is whole and safe on the disk. Raises Damaged or OSError; then
        nothing of it is left."""
        if self.have != self.size or self._digest.hexdigest() != self.sha256:
            self.restart()
            raise Damaged
        os.fsync(self._fd)

    def become(self, blob: Path) -> None:
        """Move a checked content into its place. Raises OSError."""
        blob.parent.mkdir(mode=0o700, exist_ok=True)
        self._path.replace(blob)
        os.fchmod(self._fd, 0o400)
        for each in (blob.parent, blob.parent.parent):
            sync(each)
        self.close()

    def close(self) -> None:
        """Leave it to whoever needs it next; an empty one is removed. May be called twice."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if not self.have and self._path.exists():
                self._path.unlink()
        os.close(self._fd)
        self._fd = -1


def sync(folder: Path) -> None:
    """Have the names in a folder written to the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
