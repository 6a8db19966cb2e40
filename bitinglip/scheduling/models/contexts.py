"""Learns how much of a card a CUDA context takes, with its kernels and the libraries' workspaces.

It differs by card, driver and torch from 300 MB to more than 1 GB, and nothing tells it but the
driver's figure for a worker's process, less what the worker knows of its own memory.
"""

from collections import deque
from collections.abc import Iterable
from statistics import median

from workers.engines.defaults import CONTEXT_BYTES
from workers.worker import Worker

_MIB = 1024 * 1024
_POSSIBLE = range(64 * _MIB, 4096 * _MIB)  #: other figures are of something else
_KEPT = 31  #: figures of a card
_ENOUGH = 5  #: so many before they count


class ContextSizes:
    """Learns the sizes of contexts in bytes, by the name of a card."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[int]] = {}

    def observe(self, card: str, worker: Worker, told: int | None) -> None:
        """Take a look at a worker that runs nothing, so that its memory stays as it said last.

        ``told``: the driver's figure for its process, if it has one.
        """
        beat = worker.heartbeat
        if told is None or beat is None or beat.in_flight or worker.spec is None:
            return
        assumed = worker.spec.context_bytes or CONTEXT_BYTES
        size = told - (beat.memory_bytes - assumed)
        if size in _POSSIBLE:
            self._seen.setdefault(card, deque(maxlen=_KEPT)).append(size)

    def of(self, cards: Iterable[str]) -> int | None:
        """Return the size of a context on these cards, the largest of them; None if unknown."""
        known = (self._seen[card] for card in cards if len(self._seen.get(card, ())) >= _ENOUGH)
        return max((int(median(seen)) for seen in known), default=None)
