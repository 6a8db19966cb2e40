"""Says how large the caches of running sequences may be."""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class CachePlan:
    """Limits the caches of all sequences together."""

    budget_bytes: int
    block_size: int  #: tokens
    rows: int  #: sequences at once
    context: int  #: tokens of the longest

    @property
    def max_tokens(self) -> int:
        """The tokens of all rows at their longest."""
        return self.rows * self.context
