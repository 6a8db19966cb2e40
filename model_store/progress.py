"""Reports the progress of long work."""

from typing import Protocol


class Progress(Protocol):
    def plan(self, total_bytes: int, files: int) -> None: ...
    def advance(self, path: str, bytes_done: int) -> None:
        """Report progress: ``bytes_done`` counts the whole work and never goes backwards."""
        ...


class Silent:
    """Reports nothing."""

    def plan(self, total_bytes: int, files: int) -> None: ...
    def advance(self, path: str, bytes_done: int) -> None: ...


class Counter:
    """Adds up what several files report."""

    def __init__(self, progress: Progress | None, total_bytes: int, files: int) -> None:
        self._progress = progress or Silent()
        self._done = 0
        self._told = 0
        self._progress.plan(total_bytes, files)

    def add(self, path: str, count: int) -> None:
        """Add bytes; ``count`` is negative where work is thrown away, but the report only grows."""
        self._done += count
        self._told = max(self._told, self._done)
        self._progress.advance(path, self._told)
