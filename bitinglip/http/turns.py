"""Shares out the time that parsers may take in one turn of the event loop, among all connections.

A chunk of a body costs the same whatever its size, so a client that sends single bytes costs a
thousand times what its traffic suggests; the rest of such bytes waits for the next turn.
"""

import asyncio
from collections import deque
from collections.abc import Callable

CHUNKS = 1000  #: parsed in one turn: about a millisecond


class Turns:
    """Counts the chunks of each turn, and calls those who wait, in order, in the next one."""

    def __init__(self) -> None:
        self._left = CHUNKS
        self._waiting: deque[Callable[[], None]] = deque()
        self._armed = False  #: the next turn is asked for

    def spend(self, chunks: int) -> bool:
        """Count chunks that were parsed; False if this turn has no time for more."""
        self._left -= chunks
        self._arm()
        return self._left > 0

    def wait(self, work: Callable[[], None]) -> None:
        """Call ``work`` as soon as there is time."""
        self._waiting.append(work)
        self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._armed = False
        self._left = CHUNKS
        while self._waiting and self._left > 0:
            self._waiting.popleft()()
        if self._waiting:
            self._arm()
