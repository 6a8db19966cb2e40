"""What the store asks of the file system: room, links, durability, and one owner at a time."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import BadFiles, NoSpace

FLOOR_BYTES = 256 * 1024 * 1024  #: of the disk is left free
_FULL = {errno.ENOSPC, errno.EDQUOT}


def check_room(folder: Path, needed: int) -> None:
    """Raises NoSpace when so many bytes more would not leave the floor free."""
    free = max(0, shutil.disk_usage(folder).free - FLOOR_BYTES)
    if needed > free:
        raise NoSpace(
            f"This needs {needed / 1e9:.1f} GB more; {free / 1e9:.1f} GB are free. "
            "Remove a model, or move the home."
        )


@contextmanager
def translated(what: str) -> Iterator[None]:
    """The system's errors name paths of the server; ours do not."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace("The disk is full; make room and try again.") from error
        raise BadFiles(f"{what} ({error.strerror or type(error).__name__}).") from error


def may_link(real: Path, folder: Path) -> bool:
    """Whether a hard link can stand in for a copy: our own file, on the same file system."""
    found = real.stat()
    return found.st_uid == os.getuid() and found.st_dev == folder.stat().st_dev


def bring(real: Path, target: Path) -> None:
    """A hard link where it can be, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if may_link(real, target.parent):
        try:
            os.link(real, target)
            return
        except OSError:
            pass  # a file system without hard links
    shutil.copyfile(real, target)


def settle(folder: Path) -> None:
    """Everything in the folder is ours alone, and on the disk before the folder is moved."""
    for path in [*folder.rglob("*"), folder]:
        # A file with other links has the mode of the file it was made from.
        if path.is_dir() or path.stat().st_nlink == 1:
            path.chmod(0o700 if path.is_dir() else 0o600)
        sync(path)


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(folder: Path) -> int | None:
    """A handle that owns the folder until it is closed or its process dies; None if it is owned."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == folder.stat().st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass  # owned, or its owner has just removed it
    os.close(handle)
    return None
