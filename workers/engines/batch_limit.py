"""Limits the sequences of one pass of a model, for a while after memory ran out."""

CAUTIOUS_PASSES = 32  #: a failed pass is computed again, so trying costs 3 % at most


class BatchLimit:
    """Halves a limit when a pass runs out of memory, and doubles it again after good passes.

    What took the memory may be gone by then: another model, or one very large request.
    """

    def __init__(self, most: int, cautious: int = CAUTIOUS_PASSES) -> None:
        """``most`` is the limit where memory suffices; it is never exceeded. ``cautious`` is how
        many good passes it takes until a larger one is tried."""
        self._most = most
        self._now = most
        self._cautious = cautious
        self._left = 0  #: good passes until twice as many are tried

    @property
    def now(self) -> int:
        """Return how many sequences the next pass may hold, at least 1."""
        return self._now

    def halve(self, failed: int) -> int:
        """Set the limit to half of the ``failed`` sequences whose pass ran out of memory."""
        self._now = max(1, min(self._now, failed // 2))
        self._left = self._cautious
        return self._now

    def passed(self) -> None:
        """Count a pass that fitted into memory."""
        if self._now == self._most:
            return
        self._left -= 1
        if self._left <= 0:
            self._now = min(self._most, 2 * self._now)
            self._left = self._cautious
