"""Locks folders between processes; a lock ends with the process that has it.

Network file systems lock no folders: there the lock is on a file in the folder.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"  #: in a folder that cannot be locked itself
_NOT_A_FOLDER = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.EISDIR}


def lock(path: Path) -> int | None:
    """Lock a folder or file until the returned handle is closed; None if it is locked."""
    try:
        return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return None  # owned, or its owner has just removed it


@contextmanager
def held(place: Path, *, shared: bool) -> Iterator[None]:
    """Hold the folder that is in this place: it is not replaced meanwhile. Waits for others.

    Those that only read share the hold. It ends with the process. Raises FileNotFoundError.
    """
    handle = hold(place, shared=shared)
    try:
        yield
    finally:
        os.close(handle)


def hold(place: Path, *, shared: bool) -> int:
    """Hold it until the returned handle is closed."""
    while True:
        try:
            return _lock(place, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except BlockingIOError:
            continue  # while this waited, another one came into the place


def _lock(path: Path, how: int) -> int:
    """Raise BlockingIOError if the lock is not to be had, or is not on what is there now."""
    try:
        return _locked(path, os.open(path, os.O_RDONLY), how)
    except OSError as error:
        if error.errno not in _NOT_A_FOLDER:
            raise
    inside = path / LOCK if path.is_dir() else path
    try:
        return _locked(inside, os.open(inside, os.O_RDWR | os.O_CREAT, 0o600), how)
    except PermissionError:
        if how != fcntl.LOCK_SH:
            raise
    return os.open(path, os.O_RDONLY)  # a folder that is read-only is not replaced


def _locked(path: Path, handle: int, how: int) -> int:
    try:
        fcntl.flock(handle, how)
        if os.fstat(handle).st_ino != path.stat().st_ino:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
    except BaseException:
        os.close(handle)
        raise
    return handle
