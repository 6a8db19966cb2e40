"""Sends files through a connection, and takes them: in pieces, of the size that was announced."""

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from workers.framing import BadFrame
from workers.nodes.link import Link, decode
from workers.nodes.messages import CHUNK_BYTES, File, Kind

MOST_FILE_BYTES = 1 << 30
_MOST_NAME = 200
#: of a disk, what files that come leave free: a twentieth, and at most so many bytes
_KEPT_PART, _MOST_KEPT = 20, 1 << 30

Result = TypeVar("Result")


class NotKept(Exception):
    """A file has come whole and could not be written."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} could not be kept: {why}")
        self.name = name


async def send_file(link: Link, path: Path, size: int | None = None) -> bool:
    """Send a file under its name; False, and nothing sent, if it is none of that size.

    Links are not followed: a worker that was broken into may have left one. Raises LinkLost.
    """
    try:
        fd = await opened(_open, path, size)
    except OSError:
        return False
    try:
        left = os.fstat(fd).st_size
        link.tell(Kind.FILE, File(path.name, left))
        while left > 0:
            piece = await in_thread(os.read, fd, min(CHUNK_BYTES, left))
            piece = piece or bytes(min(CHUNK_BYTES, left))  # it was cut short: the size was told
            left -= len(piece)
            link.send(Kind.DATA, piece)
            await link.drain()
    finally:
        os.close(fd)
    return True


def _open(path: Path, size: int | None) -> int:
    """Open a regular file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size != (
        found.st_size if size is None else size
    ):
        os.close(fd)
        raise OSError("it is no file of that size")
    if found.st_size > MOST_FILE_BYTES:
        os.close(fd)
        raise OSError("it is too large")
    return fd


class IncomingFiles:
    """Takes files of one connection into a folder, one after the other.

    Frames of other kinds may come between the pieces: of a worker's output, or its end.
    """

    def __init__(self, folder: Path | None, prefix: str = "") -> None:
        """``prefix`` begins the names that files get. Without a folder their bytes are dropped."""
        self._folder = folder
        self._prefix = prefix
        self._head: File | None = None  #: of the file that is coming
        self._left = 0  #: bytes that are to come of it
        self._fd = -1
        self._trouble: str | None = None  #: why it cannot be kept

    async def take(self, kind: Kind, payload: bytes) -> str | None:
        """Take a frame FILE or DATA; return the name of the file that is whole with it.

        Raises BadFrame for a name that is a path or for another size, or NotKept.
        """
        if kind == Kind.FILE:
            await self._begin(payload)
        else:
            await self._add(payload)
        return await self._end() if self._head is not None and not self._left else None

    def close(self) -> None:
        """Remove a file that is not whole."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                self._part().unlink()
        self._head = None

    async def _begin(self, payload: bytes) -> None:
        self.close()
        head = decode(payload, File)
        if not head.name or len(head.name) > _MOST_NAME or head.name != os.path.basename(head.name):
            raise BadFrame("the name of a file is a path")
        if head.name.startswith(".") or not head.name.isprintable() or head.size > MOST_FILE_BYTES:
            raise BadFrame("a file has no name that may be used, or is too large")
        self._head, self._left, self._trouble = head, head.size, None
        if self._folder is not None:
            try:
                self._fd = await opened(_create, self._part())
            except OSError as error:
                self._trouble = _why(error)

    async def _add(self, piece: bytes) -> None:
        if self._head is None or not piece or len(piece) > self._left:
            raise BadFrame("the pieces of a file are not of the size that it was said to have")
        self._left -= len(piece)
        if self._fd >= 0:
            try:
                await in_thread(_write, self._fd, piece)
            except OSError as error:
                self._drop(error)

    async def _end(self) -> str:
        assert self._head is not None
        name, part = self._head.name, self._part()
        if self._fd >= 0:
            try:
                await in_thread(os.replace, part, part.with_name(f"{self._prefix}{name}"))
            except OSError as error:
                self._drop(error)
        self.close()
        if self._trouble is not None:
            raise NotKept(name, self._trouble)
        return name

    def _drop(self, error: OSError) -> None:
        """Take the rest of a file without keeping it, so that what follows is in order."""
        head = self._head
        self.close()
        self._head, self._trouble = head, _why(error)

    def _part(self) -> Path:
        """Return where a file is until it is whole."""
        assert self._head is not None
        return (self._folder or Path()) / f".{self._prefix}{self._head.name}"


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__


async def in_thread(call: Callable[..., Result], *args: object) -> Result:
    """Call in a thread, whose end is waited for even when cancelled: it uses a descriptor that is
    closed next, and whose number may then be another file's."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


async def opened(call: Callable[..., int], *args: object) -> int:
    """Open a file in a thread; it is closed if its caller was cancelled."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        if running.exception() is None:
            os.close(running.result())
        raise


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _write(fd: int, data: bytes) -> None:
    """Write all of it. Raises OSError, also where it would take the last of the disk."""
    disk = os.fstatvfs(fd)
    kept = min(_MOST_KEPT, disk.f_blocks * disk.f_frsize // _KEPT_PART)
    if disk.f_bavail * disk.f_frsize - len(data) < kept:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
