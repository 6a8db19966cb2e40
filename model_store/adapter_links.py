"""Lends adapters to the workers of their bases: links to their files, in a folder of each base.

A worker may open what its load named, and nothing else. So that it can open adapters that come
later too, it may read the folder of its base; a link is there before the adapter is listed, and
under another name where the files are others.
"""

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from model_store.manifest import FILES, FileEntry, Manifest
from model_store.names import folder_name
from model_store.selection import ADAPTER_CONFIG, ADAPTER_WEIGHTS

log = logging.getLogger(__name__)

LENT = ".lent"
_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


class AdapterLinks:
    """Owns the folder of links. Only the process that has the store's models run uses it."""

    def __init__(self, root: Path) -> None:
        """``root`` is the store's folder."""
        self.root = root
        self.folder = root / LENT
        self._paths: dict[str, str] = {}  #: of adapters, by their names
        self._swept = False
        self._lock = threading.Lock()

    def path(self, adapter: str) -> str | None:
        """Return the folder that a worker finds an adapter's files in; None if it is not lent."""
        return self._paths.get(adapter)

    def of_base(self, base: str) -> Path:
        """Return the folder that holds those of a base, made if it is missing. Raises OSError."""
        folder = self.folder / folder_name(base)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def follow(self, manifests: Mapping[str, Manifest]) -> None:
        """Lend the adapters that are listed and can be computed beside their bases, no others.

        What cannot be linked or copied, on a store that may only be read, is not lent.
        """
        with self._lock:
            self._follow(manifests)

    def _follow(self, manifests: Mapping[str, Manifest]) -> None:
        if not self._swept:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._swept = True
        wanted = [each for each in manifests.values() if each.adapter_of and each.lora_rank]
        paths = {}
        for each in wanted:
            try:
                paths[each.name] = str(self._lend(each))
            except OSError as error:
                log.warning("%s has a worker of its own: %s", each.name, error.strerror)
        self._paths = paths
        self._remove_others(paths.values())

    def _lend(self, adapter: Manifest) -> Path:
        assert adapter.adapter_of is not None
        base, contents = self.of_base(adapter.adapter_of), hashlib.sha256()
        for entry in adapter.files:
            contents.update(f"{entry.path} {entry.sha256}\n".encode())
        name = f"{folder_name(adapter.name)}-{contents.hexdigest()[:16]}"
        there = base / name
        sources = self.root / folder_name(adapter.name) / FILES
        if all(_is_current(there / each, sources / each) for each in _FILES):
            return there
        shutil.rmtree(there, ignore_errors=True)
        draft = base / f"{name}.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        for each in _FILES:
            try:
                os.link(sources / each, draft / each)
            except OSError:
                shutil.copy2(sources / each, draft / each)
        draft.rename(there)
        return there

    def _remove_others(self, kept: Iterable[str]) -> None:
        """Remove what is lent no more. A worker that has it in memory goes on with it."""
        names = {Path(each) for each in kept}
        with suppress(OSError):
            for base in self.folder.iterdir():
                for each in set(base.iterdir()) - names:
                    shutil.rmtree(each, ignore_errors=True)


def stamped(adapter: Manifest) -> Iterator[FileEntry]:
    """Yield the lent files of an adapter whose times of change its manifest knows."""
    return (each for each in adapter.files if each.path in _FILES and each.mtime_ns)


def _is_current(lent: Path, source: Path) -> bool:
    """Return whether a lent file is what the store has now: a repair puts another in its place."""
    try:
        mine, theirs = lent.stat(), source.stat()
    except OSError:
        return False
    return (mine.st_size, mine.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
