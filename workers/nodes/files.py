"""Sends files through a connection, and takes them: in pieces, of the size that was announced."""

import asyncio
import os
import stat
from pathlib import Path

from workers.framing import BadFrame
from workers.nodes.link import Link, decode
from workers.nodes.messages import CHUNK_BYTES, File, Kind

MOST_FILE_BYTES = 1 << 30
_MOST_NAME = 200


async def send_file(link: Link, path: Path, size: int | None = None) -> bool:
    """Send a file under its name; False, and nothing sent, if it is none of that size.

    Links are not followed: a worker that was broken into may have left one. Raises LinkLost.
    """
    try:
        fd = await asyncio.to_thread(_open, path, size)
    except OSError:
        return False
    try:
        left = os.fstat(fd).st_size
        link.tell(Kind.FILE, File(path.name, left))
        while left > 0:
            piece = await asyncio.to_thread(os.read, fd, min(CHUNK_BYTES, left))
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


async def take_file(link: Link, payload: bytes, folder: Path | None, prefix: str = "") -> str:
    """Take a file that a frame has announced into a folder; return its name.

    Without a folder its bytes are dropped. Raises BadFrame for a name that is a path or another
    size, LinkLost, or OSError.
    """
    head = decode(payload, File)
    if not head.name or len(head.name) > _MOST_NAME or head.name != os.path.basename(head.name):
        raise BadFrame("the name of a file is a path")
    if head.name.startswith(".") or not head.name.isprintable() or head.size > MOST_FILE_BYTES:
        raise BadFrame("a file has no name that may be used, or is too large")
    fd = (
        None
        if folder is None
        else await asyncio.to_thread(_create, folder / f".{prefix}{head.name}")
    )
    try:
        left = head.size
        while left > 0:
            kind, piece = await link.receive()
            if kind != Kind.DATA or not piece or len(piece) > left:
                raise BadFrame("the pieces of a file are not of the size that it was said to have")
            left -= len(piece)
            if fd is not None:
                await asyncio.to_thread(_write, fd, piece)
    finally:
        if fd is not None:
            os.close(fd)
    if folder is not None:
        name = f"{prefix}{head.name}"
        await asyncio.to_thread(os.replace, folder / f".{name}", folder / name)
    return head.name


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
