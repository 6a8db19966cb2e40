"""Bounds what compilers and the driver keep for models from one load to the next.

``<root>/<folder of the model>/<cache>/...``: a worker makes the first two before it is confined
and writes into the third, so names there are not to be trusted. A cache goes whole, because what
is left of one may be worse than none; its folder stays, which a running worker may write to.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

CLEAN_SECONDS = 3600.0  #: between two calls of ``clean``
_BLOCK = 512  #: bytes, the unit of ``st_blocks``


@dataclass(frozen=True, slots=True)
class _Cache:
    model: str
    path: Path
    bytes: int
    used: float  #: Unix time at which a file of it was read or written last


class ModelCaches:
    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes

    def clean(self, models: Collection[str]) -> None:
        """Remove the caches of other models than these folders', and what is too much of the rest.

        The model that holds most loses its oldest cache first. What cannot be removed is tried
        again by the next call.
        """
        for folder in _folders(self._root):
            if models and folder.name not in models:  # none: their disk may be away
                shutil.rmtree(folder, ignore_errors=True)
        caches = [
            _measured(model.name, cache)
            for model in _folders(self._root)
            for cache in _folders(model)
        ]
        for cache in _too_much(caches, self._max_bytes):
            log.warning(
                "compiled code of %s (%d bytes) is removed: all together is more than "
                "files.max_cache_bytes",
                cache.model,
                cache.bytes,
            )
            _empty(cache.path)


def _too_much(caches: list[_Cache], max_bytes: int) -> Iterator[_Cache]:
    """Choose what has to go."""
    held: dict[str, list[_Cache]] = {}
    for cache in sorted(caches, key=lambda each: each.used):
        if cache.bytes:
            held.setdefault(cache.model, []).append(cache)
    while sum(each.bytes for own in held.values() for each in own) > max_bytes:
        largest = max(held, key=lambda model: sum(each.bytes for each in held[model]))
        yield held[largest].pop(0)


def _folders(parent: Path) -> list[Path]:
    """Return the folders in a folder; links are none."""
    try:
        with os.scandir(parent) as entries:
            return [Path(each.path) for each in entries if each.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _measured(model: str, cache: Path) -> _Cache:
    size, used = 0, 0.0
    for _, folders, names, fd in os.fwalk(cache):
        for name in (*names, *folders):
            with contextlib.suppress(OSError):  # gone meanwhile
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                size += found.st_blocks * _BLOCK
                used = max(used, found.st_mtime, found.st_atime)
    return _Cache(model, cache, size, used)


def _empty(folder: Path) -> None:
    """Remove what is in a folder, and nothing that links in it lead to."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
