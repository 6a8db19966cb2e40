"""Bounds the failures that a model may have in a period before it rests (OTP)."""

from collections import deque

_LONGEST_REST = 900.0  #: seconds


class RestartBudget:
    """Allows ``most`` failures within ``window`` seconds; the clock is the caller's.

    A model that has used it up rests for as long as the window, and twice as long each time that
    it uses it up again soon after a rest.
    """

    def __init__(self, most: int, window: float) -> None:
        self._most = most
        self._window = window
        self._failures: deque[float] = deque()
        self._rest = 0.0  #: how long the last rest was
        self._rested_at = 0.0  #: when it ended

    def spend(self, now: float) -> bool:
        """Count a failure; False if the budget is used up."""
        self._forget(now)
        self._failures.append(now)
        return len(self._failures) <= self._most

    def give_back(self, failures: int) -> None:
        """Take back the last failures: they were a request's, not the model's."""
        for _ in range(min(failures, len(self._failures))):
            self._failures.pop()

    def pause(self, now: float) -> float:
        """Return the seconds to wait before the next start: 0, then 1, 2, 4, at most 8."""
        self._forget(now)
        recent = len(self._failures)
        return 0.0 if recent <= 1 else min(8.0, 2.0 ** (recent - 2))

    def rest(self, now: float) -> float:
        """Return the seconds for which a model is out of service that has used its budget up."""
        shortest = max(1.0, self._window)
        soon = self._rest and now <= self._rested_at + max(shortest, self._rest)
        longest = max(_LONGEST_REST, shortest)
        self._rest = min(longest, 2 * self._rest) if soon else shortest
        self._rested_at = now + self._rest
        return self._rest

    def reset(self) -> None:
        self._failures.clear()
        self._rest = 0.0

    def _forget(self, now: float) -> None:
        while self._failures and self._failures[0] <= now - self._window:
            self._failures.popleft()
