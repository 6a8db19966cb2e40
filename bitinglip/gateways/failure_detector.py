"""Detects dead servers by the heartbeats that this one has read itself. Pure.

No wall clock is compared: a server is dead if its heartbeat has not changed for a whole lease while
this one read it all the time. Where this one could not read (it was suspended, or the database was
away), the lease starts again, because the others may not have been able to write.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Heartbeat(NamedTuple):
    """Identifies one run of a server, and counts its heartbeats."""

    run: str
    beats: int


class FailureDetector:
    """Remembers since when each server has had the same heartbeat."""

    def __init__(self, lease: float, longest_gap: float) -> None:
        """``longest_gap``: seconds between two reads; after a longer gap all leases start again."""
        self._lease = lease
        self._longest_gap = longest_gap
        self._read_at: float | None = None
        self._since: dict[str, tuple[Heartbeat, float]] = {}

    def dead(self, others: Mapping[str, Heartbeat], now: float) -> dict[str, Heartbeat]:
        """Compare heartbeats read at ``now`` with earlier ones; return the dead servers."""
        if self._read_at is None or now - self._read_at > self._longest_gap:
            self._since.clear()
        self._read_at = now
        self._since = {name: self._seen(name, heartbeat, now) for name, heartbeat in others.items()}
        return {
            name: heartbeat
            for name, (heartbeat, since) in self._since.items()
            if now - since > self._lease
        }

    def silence(self, name: str, now: float) -> float:
        """Return the seconds for which a server has had the same heartbeat; 0 if unknown."""
        return now - self._since[name][1] if name in self._since else 0.0

    def _seen(self, name: str, heartbeat: Heartbeat, now: float) -> tuple[Heartbeat, float]:
        last = self._since.get(name)
        return last if last is not None and last[0] == heartbeat else (heartbeat, now)
