"""Keeps the weights of unloaded models in RAM for as long as there is room for them.

They lie in the kernel's page cache, not in our memory: a load finds them there without knowing, and
the kernel may take the pages back whenever the RAM is needed more.
"""

import os
import resource
import stat
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHARE_OF_RAM = 4  #: a quarter is the budget where none is set
_BLOCK = 512  #: bytes: what the system counts reads in
_PIECE_BYTES = 8 * 1024 * 1024


def budget(configured: int | None, ram_bytes: int) -> int:
    """Return the most bytes to keep: the configured number, else a share of the RAM."""
    return ram_bytes // SHARE_OF_RAM if configured is None else configured


@dataclass(eq=False)
class _Kept:
    files: list[tuple[Path, int]]  #: with their sizes in bytes
    bytes: int
    wanted: bool = True


class PageCache:
    """Drops the least recently kept models first. Every method may be called from any thread."""

    def __init__(self, budget_bytes: int, *, reads_first: bool = False) -> None:
        """``reads_first``: the models lie on slow storage, so that what is about to be loaded is
        read in sequence first."""
        self.reads_first = reads_first
        self._budget = budget_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def held(self) -> dict[str, int]:
        """Return the bytes of each kept model, the least recent first."""
        with self._lock:
            return {name: kept.bytes for name, kept in self._kept.items()}

    def keep(self, name: str, folder: Path) -> int:
        """Read the model's safetensors files into the page cache, in place of older models.

        Returns the bytes that came from storage: not those that were cached. Blocks for as long as
        the disk takes: call it in a thread. Keeps nothing of a model that is larger than the
        budget. Never raises for files that are missing, cut off or unreadable.
        """
        before = _storage_bytes()
        files = list(_weights(folder))
        kept = _Kept(files, sum(size for _, size in files))
        for path, _ in self._admit(name, kept):
            _drop_pages(path)
        whole = sum(_read(path, size, kept) for path, size in files if kept.wanted)
        with self._lock:
            if self._kept.get(name) is kept:
                kept.bytes = whole
                if not whole:
                    self._forget(name)
        return _storage_bytes() - before

    def _admit(self, name: str, kept: _Kept) -> list[tuple[Path, int]]:
        """Enter the model into the books; return the files of the models that it displaced."""
        with self._lock:
            self._forget(name)
            if self._closed or not 0 < kept.bytes <= self._budget:
                kept.wanted = False
                return []
            displaced = []
            while sum(each.bytes for each in self._kept.values()) + kept.bytes > self._budget:
                displaced += self._forget(next(iter(self._kept)))
            self._kept[name] = kept
            return displaced

    def drop(self, name: str) -> None:
        """Stop keeping a model: it is on a device again, or gone.

        Its pages stay until the kernel needs them: whoever loads the model may be reading them.
        """
        with self._lock:
            self._forget(name)

    def close(self) -> None:
        """Drop every model, and keep none from now on. A ``keep`` that runs ends soon after."""
        with self._lock:
            self._closed = True
            for name in list(self._kept):
                self._forget(name)

    def _forget(self, name: str) -> list[tuple[Path, int]]:
        if (kept := self._kept.pop(name, None)) is None:
            return []
        kept.wanted = False
        return kept.files


def give_back(folder: Path) -> None:
    """Give the pages of a model's files back, where cards have the same memory: CUDA counts them as
    used. Blocks a little: call it in a thread."""
    for path, _ in _weights(folder):
        _drop_pages(path)


def _storage_bytes() -> int:
    """Return the bytes that this thread has read from storage; elsewhere, that the process has."""
    who = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    return resource.getrusage(who).ru_inblock * _BLOCK


def _weights(folder: Path) -> Iterator[tuple[Path, int]]:
    """Return the safetensors files of a model and its parts, with their sizes."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(parent, name) for name in sorted(names) if name.endswith(".safetensors")):
            try:
                found = path.stat()
            except OSError:
                continue
            if stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its writer
                yield path, found.st_size


def _read(path: Path, size: int, kept: _Kept) -> int:
    """Read a file once, so that it is cached; return its bytes.

    Read, not mapped and populated: a mapping ends in SIGBUS where a file was cut off meanwhile, and
    would hold a removed model on the disk. What is read already costs a copy in memory only.
    """
    piece = memoryview(bytearray(min(_PIECE_BYTES, max(1, size))))
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            while done < size and kept.wanted:
                _ask_ahead(file.fileno(), done + len(piece))
                count = file.readinto(piece[: min(len(piece), size - done)])
                if not count:
                    break
                done += count
    except OSError:
        pass  # gone, or a disk that fails: the load will say so, to somebody who asked for it
    return done


def _ask_ahead(handle: int, offset: int) -> None:
    """Let the disk work on the next piece while this one is copied."""
    if sys.platform == "linux":
        os.posix_fadvise(handle, offset, _PIECE_BYTES, os.POSIX_FADV_WILLNEED)


def _drop_pages(path: Path) -> None:
    """Give a file's pages back. The kernel leaves those that some process has mapped."""
    if sys.platform != "linux":
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        pass
    finally:
        os.close(handle)
