"""Tells which servers have died, by the signs of life that this one has seen itself. Pure.

Nobody's wall clock counts: a server is dead whose sign of life has not changed for the whole lease
while this one looked all the time. Where this one could not look (it stood still, or the database
was away), the time begins anew: the others may have been in the same place.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Life(NamedTuple):
    """Names one start of a server, and counts its signs of life."""

    run: str
    beats: int


class Observed:
    """Remembers since when each server has shown the same sign of life."""

    def __init__(self, lease: float, longest_gap: float) -> None:
        """``longest_gap``: seconds between two looks, beyond which the time begins anew."""
        self._lease = lease
        self._longest_gap = longest_gap
        self._looked: float | None = None
        self._since: dict[str, tuple[Life, float]] = {}

    def dead(self, others: Mapping[str, Life], now: float) -> dict[str, Life]:
        """Take a look at the signs of life at a moment; return the servers that have died."""
        if self._looked is None or now - self._looked > self._longest_gap:
            self._since.clear()
        self._looked = now
        self._since = {name: self._seen(name, life, now) for name, life in others.items()}
        return {
            name: life for name, (life, since) in self._since.items() if now - since > self._lease
        }

    def silence(self, name: str, now: float) -> float:
        """Return the seconds for which a server has shown the same sign of life; 0 if unknown."""
        return now - self._since[name][1] if name in self._since else 0.0

    def _seen(self, name: str, life: Life, now: float) -> tuple[Life, float]:
        last = self._since.get(name)
        return last if last is not None and last[0] == life else (life, now)
