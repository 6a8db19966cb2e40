"""Reports the progress of long work, file by file."""

import threading
from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Is told what there is to do, then how far each file is. May be called by several threads,
    but never by two at once."""

    def plan(self, files: Mapping[str, int], done: Mapping[str, int]) -> None:
        """Begin the work, or its next part: the bytes of each file, and those that are there."""
        ...

    def advance(self, path: str, bytes_done: int) -> None:
        """Report how many bytes of one file are done; never fewer than before."""
        ...


class Silent:
    """Reports nothing."""

    def plan(self, files: Mapping[str, int], done: Mapping[str, int]) -> None: ...
    def advance(self, path: str, bytes_done: int) -> None: ...


class Counter:
    """Adds up the bytes of each file and reports them; safe for several threads."""

    def __init__(
        self,
        progress: Progress | None,
        files: Mapping[str, int],
        done: Mapping[str, int] | None = None,
    ) -> None:
        self._progress = progress or Silent()
        self._lock = threading.Lock()
        self._files = dict(files)
        self._done: dict[str, int] = {}
        self._told = dict(done or {})
        self._progress.plan(self._files, dict(self._told))

    def add(self, path: str, count: int) -> None:
        """Add bytes of a file; ``count`` is negative where work is thrown away, but the report
        only grows."""
        with self._lock:
            now = self._done[path] = self._done.get(path, 0) + count
            if now > self._told.get(path, 0):
                self._told[path] = now
                self._progress.advance(path, now)

    def reach(self, path: str, bytes_done: int) -> None:
        """Say that so many bytes of a file are done, however they came."""
        with self._lock:
            if bytes_done > self._told.get(path, -1):
                self._told[path] = bytes_done
                self._progress.advance(path, bytes_done)

    def left(self) -> int:
        """Return the bytes that have not been done."""
        with self._lock:
            return sum(self._files.values()) - sum(self._told.values())
