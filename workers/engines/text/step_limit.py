"""Limits the tokens of a step: fewer for a while where memory did not suffice. Pure."""

_CAUTIOUS_STEPS = 256  #: steps after which a limit that memory set is tried at twice its size


class StepLimit:
    """Holds how many tokens a step may have over all rows."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._most = tokens
        self._cautious = 0  #: steps until a larger one is tried

    def set(self, tokens: int) -> None:
        """Allow so many tokens a step from now on."""
        self._most = self.tokens = tokens

    def lower(self, tokens: int) -> None:
        """Allow no more than so many tokens for a while: more did not fit into memory."""
        self.tokens = max(1, min(self.tokens, tokens))
        self._cautious = _CAUTIOUS_STEPS

    def recover(self) -> None:
        """Note a step; allow larger ones again after a while: what took the memory may be gone."""
        if self.tokens == self._most:
            return
        self._cautious -= 1
        if self._cautious <= 0:
            self.tokens = min(self._most, 2 * self.tokens)
            self._cautious = _CAUTIOUS_STEPS
