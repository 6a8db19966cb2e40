"""Count the requests of each key at once."""

import math


class Places:
    """Counts requests, streams and WebSockets by key. Every ``enter`` needs its ``leave``."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def enter(self, key_id: str, limit: float = math.inf) -> bool:
        """Count one more; return False if there are ``limit`` already, and do not count it then."""
        count = self._open.get(key_id, 0)
        if count >= limit:
            return False
        self._open[key_id] = count + 1
        return True

    def leave(self, key_id: str) -> None:
        count = self._open[key_id] - 1
        if count:
            self._open[key_id] = count
        else:
            del self._open[key_id]

    def count(self, key_id: str) -> int:
        return self._open.get(key_id, 0)

    @property
    def total(self) -> int:
        return sum(self._open.values())
