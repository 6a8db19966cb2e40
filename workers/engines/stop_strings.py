"""Finds stop strings across token borders, before any part of them is sent."""

from collections.abc import Sequence


class StopFinder:
    """Passes text on up to a stop string; holds back what could be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self.found: str | None = None  #: the stop string at which it stopped

    @property
    def stopped(self) -> bool:
        return self.found is not None

    def push(self, text: str) -> str:
        """Take more text; returns what may be sent now, and sets ``found`` at a stop string."""
        if not self._stops:
            return text
        self._held += text
        hits = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            at, self.found = min(hits)
            return self._give(at)
        return self._give(len(self._held) - self._possible_beginning())

    def flush(self) -> str:
        """Return the text that was held back, when no more text will come."""
        return "" if self.stopped else self._give(len(self._held))

    def _give(self, count: int) -> str:
        given, self._held = self._held[:count], self._held[count:]
        return given

    def _possible_beginning(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
