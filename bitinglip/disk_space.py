"""Refuses to fill the disk: what clients ask to be stored must leave some of it free."""

import os
from pathlib import Path

from bitinglip.errors import DiskFull

_FLOOR_BYTES = 2**30
_FLOOR_SHARE = 0.05  #: of a disk on which a gigabyte would be too much


class DiskSpace:
    """Knows the disk of a folder, and how much of it stays free."""

    def __init__(self, folder: Path, min_free: int | None) -> None:
        """``min_free``: bytes; None is 1 GiB, or 5 % of a disk smaller than 20 GiB."""
        self._folder = folder
        self._min_free = min_free

    def check(self, size: int = 0) -> None:
        """Raise DiskFull if so many bytes more would leave less than the minimum free."""
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            raise DiskFull("The disk of the server cannot be read.") from error
        least = self._min_free
        if least is None:
            least = min(_FLOOR_BYTES, int(disk.f_blocks * disk.f_frsize * _FLOOR_SHARE))
        if disk.f_bavail * disk.f_frsize - size < least:
            raise DiskFull()
