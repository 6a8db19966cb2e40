"""Wraps the file system for the store: free space, links, durability and errors."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import BadFiles, NoSpace, StoreError, StoreUnavailable
from model_store.sizes import size_text

FLOOR_BYTES = 256 * 1024 * 1024  #: of the disk is left free
_FULL = {errno.ENOSPC, errno.EDQUOT}
#: of a disk that failed, is gone, or is not written to any more
_BROKEN = {
    errno.EIO, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ESTALE, errno.EHOSTDOWN,
    errno.ETIMEDOUT, errno.ESHUTDOWN, errno.EROFS,
}  # fmt: skip
_FICLONE = 0x40049409  #: of Linux: XFS, Btrfs and others share the bytes of two files
_CHUNK = 4 * 1024 * 1024


def check_room(folder: Path, needed: int) -> None:
    """Raise NoSpace if writing so many bytes would leave less than the minimum free."""
    free = shutil.disk_usage(folder).free
    if needed > max(0, free - FLOOR_BYTES):
        raise NoSpace(
            f"This needs {size_text(needed)} more; {size_text(free)} are free, of which "
            f"{size_text(FLOOR_BYTES)} stay free. Make room, or move the home to another disk."
        )


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Raise errors of the system as the store's, whose messages hold no path of the server."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace("The disk is full; make room and try again.") from error
        if error.errno == errno.EFBIG:
            raise NoSpace(
                "The disk, or a limit of this process, takes no such large file."
            ) from error
        if error.errno == errno.EROFS:
            raise unavailable("written to", error) from error
        raise BadFiles(f"{what} ({error.strerror or type(error).__name__}).") from error


def unavailable(how: str, error: OSError) -> StoreError:
    """Return the error of a store that cannot be ``how``: read, or written to."""
    if error.errno in _FULL:
        return NoSpace("The disk is full; make room and try again.")
    why = error.strerror or type(error).__name__
    return StoreUnavailable(
        f"The store of models cannot be {how} ({why}): look at its disk, and whether it is mounted."
    )


def is_broken(error: OSError) -> bool:
    """Return whether it is the disk that failed, not one file that cannot be had."""
    return error.errno in _BROKEN


def may_link(real: Path, folder: Path) -> bool:
    """Return whether a hard link can replace a copy: the file is ours, on this file system."""
    found = real.stat()
    return found.st_uid == os.getuid() and found.st_dev == folder.stat().st_dev


def link_or_copy(real: Path, target: Path) -> None:
    """Link the file if possible, else copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if may_link(real, target.parent):
        try:
            os.link(real, target)
            return
        except OSError:
            pass  # a file system without hard links
    copy(real, target)


def copy(real: Path, target: Path) -> None:
    """Copy a file; where the file system can, both share their bytes until one is written to."""
    with real.open("rb") as old, target.open("xb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            shutil.copyfileobj(old, new, _CHUNK)
        new.flush()
        os.fsync(new.fileno())


def secure_and_sync(folder: Path) -> None:
    """Make the folder private and sync it to the disk, before it is moved into place."""
    for path in [*folder.rglob("*"), folder]:
        # A file with other links has the mode of the file it was made from.
        if path.is_dir() or path.stat().st_nlink == 1:
            path.chmod(0o700 if path.is_dir() else 0o600)
        sync(path)


def sync_folders(folder: Path) -> None:
    """Sync the names of the folder's files, and of its folders', to the disk."""
    for parent, _, _ in os.walk(folder):
        sync(Path(parent))


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
