"""How long work tells how far it is."""

from typing import Protocol


class Progress(Protocol):
    def plan(self, total_bytes: int, files: int) -> None: ...
    def advance(self, path: str, bytes_done: int) -> None:
        """``bytes_done`` counts the whole work and never goes backwards."""
        ...


class Silent:
    """Tells nobody."""

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
        """``count`` may be negative where work is thrown away; what is told only grows."""
        self._done += count
        self._told = max(self._told, self._done)
        self._progress.advance(path, self._told)
