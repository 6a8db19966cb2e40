"""Locks folders and parts of the copies of models; each lock ends with its process."""

import errno
import fcntl
import os
from pathlib import Path


def open_lock(folder: Path, how: int) -> int:
    """Lock a folder until the returned descriptor is closed. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(folder / "lock", flags, 0o600)
    try:
        fcntl.flock(fd, how)
        os.utime(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def try_lock(folder: Path) -> int | None:
    """Lock a folder for this alone; None if another one has it. Raises OSError."""
    try:
        return open_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def is_locked(path: Path) -> bool:
    """Return True for a folder or a part that a process holds."""
    try:
        fd = os.open(path / "lock" if path.is_dir() else path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return True
    else:
        return False
    finally:
        os.close(fd)
