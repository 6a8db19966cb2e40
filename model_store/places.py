"""Moves finished models into their places: each is there whole, or not at all.

A model that is replaced changes places with the new one in one step where the kernel can do that
(Linux 3.15 and most file systems); elsewhere it steps aside first, and a crash in between is
repaired when a store is opened.
"""

import ctypes
import errno
import os
import shutil
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from model_store.disk import sync
from model_store.locks import lock

PARTIAL = ".partial"  #: the folder of unfinished work in a store
ASIDE = "replaced-"  #: of a folder under ``.partial``: a model that steps aside, by its folder
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


def exchange(new: Path, place: Path, partial: Path) -> None:
    """Put a folder in the place of the one that is there; that one is at ``new`` afterwards.

    Call it while the place is held. ``partial`` is the folder of unfinished work. Raises OSError;
    then the old one is in its place.
    """
    try:
        _exchange_at_once(new, place)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _exchange_in_steps(new, place, partial)
    sync(place.parent)
    sync(new.parent)


def _exchange_in_steps(new: Path, place: Path, partial: Path) -> None:
    aside = partial / f"{ASIDE}{place.name}"
    place.rename(aside)
    try:
        new.rename(place)
    except OSError:
        aside.rename(place)
        raise
    aside.rename(new)


def recover(root: Path, partial: Path) -> None:
    """Put back the models whose replacement a crash interrupted."""
    for aside in partial.glob(f"{ASIDE}*"):
        with suppress(OSError):  # a store that may only be read, or another process does it
            if (handle := lock(aside)) is None:
                continue  # its replacement is under way
            try:
                place = root / aside.name.removeprefix(ASIDE)
                if place.exists():
                    shutil.rmtree(aside)
                else:
                    aside.rename(place)
            finally:
                os.close(handle)


@cache
def _renameat2() -> Any:
    """Return the C library's function, or None."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = (
            ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
        )  # fmt: skip
    return function


def _exchange_at_once(one: Path, other: Path) -> None:
    function = _renameat2()
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    paths = os.fsencode(one), os.fsencode(other)
    if function(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))
