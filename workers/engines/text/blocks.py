"""Allocates the KV cache's blocks. Pure: knows numbers, not tensors.

Blocks are handed out oldest-freed first, so that a later prefix cache can leave the contents of
freed blocks in place and evict them in that very order.
"""

from collections import deque
from collections.abc import Iterable

#: Padding of block tables points here. It is never handed out and stays all zeros.
NULL_BLOCK = 0


class NoFreeBlocks(Exception):
    """More blocks were asked for than are free."""


class BlockAllocator:
    """Hands out the blocks 1 to ``total``; each holds ``block_size`` tokens of one sequence.

    Sequences that begin alike may share full blocks: one is free once all have released it.
    """

    def __init__(self, total: int, block_size: int) -> None:
        if total < 1 or block_size < 1:
            raise ValueError("a cache has at least one block of at least one token")
        self.total = total
        self.block_size = block_size
        self._free = deque(range(1, total + 1))
        self._holders: dict[int, int] = {}  #: of each block in use, how many sequences hold it

    @property
    def free_count(self) -> int:
        return len(self._free)

    @property
    def used_count(self) -> int:
        return len(self._holders)

    def blocks_for(self, tokens: int) -> int:
        """Count the blocks that so many tokens of one sequence take."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks. Raises :class:`NoFreeBlocks`, taking none, if too few are free."""
        if count > len(self._free):
            raise NoFreeBlocks(f"{count} blocks asked for, {len(self._free)} free")
        blocks = [self._free.popleft() for _ in range(count)]
        self._holders.update(dict.fromkeys(blocks, 1))
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks once more. Raises ValueError for one that is not in use."""
        for block in blocks:
            if block not in self._holders:
                raise ValueError(f"block {block} is not in use")
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Give blocks back. Raises ValueError for one that is not in use."""
        for block in blocks:
            holders = self._holders.pop(block, 0)
            if not holders:
                raise ValueError(f"block {block} is not in use")
            if holders > 1:
                self._holders[block] = holders - 1
            else:
                self._free.append(block)

    def books(self) -> dict[str, int]:
        """Count the blocks: ``free`` and ``used`` add up to ``total`` at any time."""
        return {"free": self.free_count, "used": self.used_count, "total": self.total}
