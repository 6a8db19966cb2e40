"""Gives sequences the blocks of their tokens: shared, found, brought back or new. Pure.

Sequences of one prompt share its full blocks: the first computes them while the others wait. Those
of different jobs share the blocks of what they have in common at their beginning, if their keys are
equal.
"""

from collections.abc import Callable

from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.plan import Sequence


class SequenceBlocks:
    """Takes blocks from the allocator for sequences, and gives them back."""

    def __init__(self, allocator: BlockAllocator, inspect: Callable[[list[int]], None]) -> None:
        """``inspect`` is given the blocks of a sequence that are about to be freed before any token
        has shown that they hold numbers."""
        self._allocator = allocator
        self._inspect = inspect

    @property
    def free_count(self) -> int:
        return self._allocator.free_count

    def missing(self, sequence: Sequence) -> int:
        """Count the blocks that its tokens take beside those that it has."""
        missing = self._allocator.blocks_for(len(sequence.tokens)) - len(sequence.blocks)
        return max(0, missing)  # drafts may have taken one too many

    def room(self, sequence: Sequence, spared: int = 0) -> int:
        """Count the tokens that fit into its blocks and the free ones, but for the ``spared``."""
        free = max(0, self._allocator.free_count - spared)
        return (len(sequence.blocks) + free) * self._allocator.block_size

    def grow(self, sequence: Sequence, count: int) -> bool:
        """Reserve the blocks of the next ``count`` tokens, if so many are free."""
        wanted = self._allocator.blocks_for(sequence.computed + count) - len(sequence.blocks)
        if wanted > self._allocator.free_count:
            return False
        if wanted > 0:
            sequence.blocks += self._allocator.allocate(wanted)
        return True

    def awaits_prompt(self, sequence: Sequence) -> bool:
        """Return whether another sequence computes just now what this one is to share."""
        holders = () if sequence.scores else sequence.holders or ()
        return bool(holders) and all(each.computed < self._sharable(each) for each in holders)

    def _sharable(self, sequence: Sequence) -> int:
        """Count the tokens of a prompt's full blocks, without its last: each computes that one."""
        size = self._allocator.block_size
        return (sequence.prompt_length - 1) // size * size

    def shared(self, sequence: Sequence) -> list[int]:
        """Return the blocks of the prompt that another sequence has computed, if they suffice."""
        tokens = self._sharable(sequence)
        for each in () if sequence.scores else sequence.holders or ():
            if each.computed >= tokens:
                return each.blocks[: tokens // self._allocator.block_size]
        if sequence.keys is None or sequence.scores:
            return []
        full = (len(sequence.tokens) - 1) // self._allocator.block_size
        return self._allocator.find(sequence.keys.of(sequence.tokens, 0, full))

    def in_use(self, blocks: list[int]) -> int:
        """Count the blocks that others hold: to share them takes none of the free ones."""
        return len(blocks) - self._allocator.free_among(blocks)

    def begin(self, sequence: Sequence, shared: list[int]) -> None:
        """Let a sequence hold the blocks that it shares, and those after them that were kept."""
        self._allocator.share(shared)
        sequence.blocks = list(shared)
        sequence.computed = len(shared) * self._allocator.block_size
        sequence.published = len(shared)
        sequence.sound = False
        self._restore(sequence)
        if not sequence.started:
            sequence.cached = sequence.computed
        if sequence.holders is not None:
            sequence.holders.append(sequence)

    def _restore(self, sequence: Sequence) -> None:
        """Bring back the next blocks of a sequence's beginning that have left the cache."""
        if sequence.keys is None or sequence.scores:
            return
        size, first = self._allocator.block_size, len(sequence.blocks)
        full = (len(sequence.tokens) - 1) // size
        blocks = self._allocator.bring_back(sequence.keys.of(sequence.tokens, first, full))
        sequence.blocks += blocks
        sequence.computed += len(blocks) * size
        self.publish(sequence, sequence.computed)

    def publish(self, sequence: Sequence, end: int) -> None:
        """Let the full blocks of the tokens before ``end`` be found.

        Except for one whose last token may be computed again.
        """
        full = (end - 1) // self._allocator.block_size
        if sequence.keys is None or full <= sequence.published:
            return
        first = sequence.published
        keys = sequence.keys.of(sequence.tokens, first, full)
        for block, key in zip(sequence.blocks[first:full], keys, strict=True):
            self._allocator.publish(block, key, sequence.keys.scope)
        sequence.published = full

    def withdraw(self, sequence: Sequence) -> list[int]:
        """Take a sequence's blocks from it; return them: they stay in use."""
        if sequence.holders is not None:
            sequence.holders.remove(sequence)
        blocks, sequence.blocks = sequence.blocks, []
        sequence.computed = 0
        return blocks

    def free(self, sequence: Sequence, blocks: list[int]) -> None:
        """Free the blocks of a sequence that were withdrawn, once no step writes to them."""
        if blocks and not sequence.sound:
            self._inspect(blocks)
        self._allocator.release(reversed(blocks))  # a text's end is of less use than its start
