"""Simulate how fast an engine gets through jobs that run at once."""

import asyncio
import heapq
from collections.abc import Callable

_EPSILON = 1e-6  #: units of work


class Batch:
    """Simulates a worker that computes a batch: each job gets ``speed`` units per second up to
    ``knee`` jobs; more jobs share what ``knee`` would get.

    ``ended`` is called with the jobs that are done, together as in one step.
    """

    def __init__(self, speed: float, knee: int, ended: Callable[[list[str]], None]) -> None:
        self._speed = speed
        self._knee = knee
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._ends: dict[str, float] = {}  #: job -> how much each must have had when it ends
        self._order: list[tuple[float, str]] = []  #: a heap of these; it may hold cancelled ones
        self._had = 0.0  #: what a job that was always here would have had
        self._at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, job: str, units: float) -> None:
        self._advance()
        self._ends[job] = self._had + units
        heapq.heappush(self._order, (self._ends[job], job))
        self._set_timer()

    def remove(self, job: str) -> bool:
        """Cancel a job; False if it is not here."""
        self._advance()
        if self._ends.pop(job, None) is None:
            return False
        self._set_timer()
        return True

    def clear(self) -> None:
        self._ends.clear()
        self._set_timer()

    @property
    def _rate(self) -> float:
        return self._speed * min(1.0, self._knee / len(self._ends))

    def _advance(self) -> None:
        now = self._loop.time()
        if self._ends:
            self._had += self._rate * (now - self._at)
        self._at = now

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._order and self._ends.get(self._order[0][1]) != self._order[0][0]:
            heapq.heappop(self._order)
        if self._order:
            left = max(0.0, self._order[0][0] - self._had) / self._rate
            self._timer = self._loop.call_later(left, self._due)

    def _due(self) -> None:
        self._advance()
        done: list[str] = []
        while self._order and self._order[0][0] <= self._had + _EPSILON:
            end, job = heapq.heappop(self._order)
            if self._ends.get(job) == end:
                del self._ends[job]
                done.append(job)
        self._set_timer()
        if done:
            self._ended(done)
