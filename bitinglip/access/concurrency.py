"""Count the requests of each key at once; a cap keeps one key from taking all there is.

It is far above what a tier grants, and the operator's own keys have none.
"""

import math

from bitinglip.access.keys import OPERATOR, Caller
from bitinglip.errors import ConcurrencyLimitExceeded


class KeyConcurrency:
    """Counts requests, streams and WebSockets by key. Every ``enter`` needs its ``leave``."""

    def __init__(self, limit: float = math.inf) -> None:
        self._limit = limit
        self._open: dict[str, int] = {}

    def enter(self, caller: Caller) -> None:
        """Count one more. Raises ConcurrencyLimitExceeded; then it is not counted."""
        count = self._open.get(caller.key_id, 0)
        if count >= self._limit and caller.tier != OPERATOR:
            raise ConcurrencyLimitExceeded(details={"limit": self._limit})
        self._open[caller.key_id] = count + 1

    def leave(self, caller: Caller) -> None:
        count = self._open[caller.key_id] - 1
        if count:
            self._open[caller.key_id] = count
        else:
            del self._open[caller.key_id]
