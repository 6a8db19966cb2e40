"""The restart budget: failures that a model may have in a period before it is given up (OTP)."""

from collections import deque


class RestartBudget:
    """At most ``most`` failures within ``window`` seconds; the clock is the caller's."""

    def __init__(self, most: int, window: float) -> None:
        self._most = most
        self._window = window
        self._failures: deque[float] = deque()

    def spend(self, now: float) -> bool:
        """Count a failure; False if the budget is used up."""
        self._forget(now)
        self._failures.append(now)
        return len(self._failures) <= self._most

    def pause(self, now: float) -> float:
        """Seconds to wait before the next start: 0, then 1, 2, 4, at most 8."""
        self._forget(now)
        recent = len(self._failures)
        return 0.0 if recent <= 1 else min(8.0, 2.0 ** (recent - 2))

    def reset(self) -> None:
        self._failures.clear()

    def _forget(self, now: float) -> None:
        while self._failures and self._failures[0] <= now - self._window:
            self._failures.popleft()
