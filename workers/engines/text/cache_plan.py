"""Says how large the caches of running sequences may be."""

from dataclasses import dataclass

from workers.engines import defaults
from workers.protocol import Load, TextOptions


@dataclass(slots=True, frozen=True)
class CachePlan:
    """Limits the caches of all sequences together."""

    budget_bytes: int
    block_size: int  #: tokens
    rows: int  #: sequences at once
    context: int  #: tokens of the longest
    eight_bits: bool = False  #: of each number, in place of the model's own format

    @property
    def max_tokens(self) -> int:
        """Return the tokens of all rows at their longest."""
        return self.rows * self.context


def cache_plan(spec: Load, positions: int, block_size: int) -> CachePlan:
    """Return what a load grants to the caches of a model that knows so many positions."""
    small = (spec.text or TextOptions()).kv_cache_dtype == "fp8"
    return CachePlan(
        spec.kv_cache_bytes or defaults.TEXT_CACHE_BYTES[spec.device],
        block_size,
        spec.max_batch or defaults.TEXT_ROWS,
        min(spec.max_context or positions, positions),
        eight_bits=small,
    )
