"""Tells one state of a file from another, so that it is read again when it has changed."""

import os

FileStamp = tuple[int, ...]


def file_stamp(path: str) -> FileStamp:
    """Return what differs once a file is written, replaced or given other rights.

    Links are followed. A file that is missing, or in a closed folder, has a stamp of its own.
    """
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_mode)
