"""Zeroes blocks of the cache that hold NaN or infinity, before another sequence has them."""

from collections.abc import Iterable

from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.runner import Runner
from workers.engines.text.sequential import SequentialRunner


class Scrubber:
    """Scrubs the blocks of an allocator in the cache of a runner."""

    def __init__(self, runner: Runner | SequentialRunner, allocator: BlockAllocator) -> None:
        self._runner = runner
        self._allocator = allocator

    def scrub(self, held: Iterable[int]) -> None:
        """Unpublish blocks, and zero those that no other sequence holds.

        A block comes as often as the caller holds it.
        """
        self._runner.scrub(self._allocator.forget(held))

    def inspect(self, blocks: list[int]) -> None:
        """Scrub blocks of a sequence that was not found broken, if they hold NaN or infinity.

        A prompt may end before its last piece is computed, which is what tells.
        """
        if not self._runner.hold_numbers(blocks):
            self.scrub(blocks)
