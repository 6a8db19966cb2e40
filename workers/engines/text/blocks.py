"""Allocates the KV cache's blocks and remembers what they hold. Pure: knows numbers, not tensors.

Free blocks keep their contents until they are handed out again: first those of which nothing is
remembered, then those that were released first, or those of an owner who holds too many.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import islice, takewhile
from typing import Protocol

from workers.engines.text.fair_lru import FairLru

#: Padding of block tables points here. It is never handed out and stays all zeros.
NULL_BLOCK = 0


class NoFreeBlocks(Exception):
    """More blocks were asked for than are free."""


class KeptPrefixes(Protocol):
    """Keeps what blocks held when they were handed out again, by their keys."""

    @property
    def room(self) -> int:
        """Return how many blocks it can keep."""
        ...

    def has(self, key: bytes) -> bool: ...

    def leave(self, blocks: Iterable[tuple[int, bytes, str]]) -> None:
        """Keep blocks, with their keys and owners, whose contents are about to be lost."""
        ...

    def restore(self, blocks: Sequence[int], keys: Sequence[bytes]) -> int:
        """Write what the first keys name into blocks; return how many are still kept."""
        ...

    def close(self) -> None: ...


class BlockAllocator:
    """Hands out the blocks 1 to ``total``; each holds ``block_size`` tokens of one sequence.

    Sequences that begin alike may share full blocks: one is free once all have released it. A full
    block that was published is found by its key for as long as its contents stay.
    """

    def __init__(self, total: int, block_size: int, kept: KeptPrefixes | None = None) -> None:
        """``kept``: what takes over published blocks that are handed out again."""
        if total < 1 or block_size < 1:
            raise ValueError("a cache has at least one block of at least one token")
        self.total = total
        self.block_size = block_size
        self.kept = kept
        self._blank = deque(range(1, total + 1))  #: free, without a key
        self._kept = FairLru(total)  #: free, with a key
        self._holders: dict[int, int] = {}  #: of each block in use, how many sequences hold it
        self._keys: dict[int, bytes] = {}  #: of published blocks
        self._owners: dict[int, str] = {}  #: of the same
        self._published: dict[bytes, int] = {}  #: the block of each key

    @property
    def free_count(self) -> int:
        return len(self._blank) + len(self._kept)

    @property
    def used_count(self) -> int:
        return len(self._holders)

    def blocks_for(self, tokens: int) -> int:
        """Count the blocks that so many tokens of one sequence take."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks. Raises :class:`NoFreeBlocks`, taking none, if too few are free."""
        if count > self.free_count:
            raise NoFreeBlocks(f"{count} blocks asked for, {self.free_count} free")
        blank = min(count, len(self._blank))
        blocks = [self._blank.popleft() for _ in range(blank)] + self._evict(count - blank)
        self._holders.update(dict.fromkeys(blocks, 1))
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks once more, also free ones that have a key. Raises ValueError for others."""
        for block in blocks:
            if block in self._kept:
                self._kept.remove(block)
                self._holders[block] = 1
            elif block in self._holders:
                self._holders[block] += 1
            else:
                raise ValueError(f"block {block} is not in use")

    def release(self, blocks: Iterable[int]) -> None:
        """Give blocks back. Raises ValueError for one that is not in use."""
        for block in blocks:
            holders = self._holders.pop(block, 0)
            if not holders:
                raise ValueError(f"block {block} is not in use")
            if holders > 1:
                self._holders[block] = holders - 1
            elif block in self._keys:
                self._kept.add(block, self._owners[block])
            else:
                self._blank.append(block)

    def publish(self, block: int, key: bytes, owner: str = "") -> None:
        """Let a block in use be found by a key, unless another is found by it already.

        ``owner``: whose it is, when blocks are to lose their contents.
        """
        if key not in self._published and block not in self._keys:
            self._published[key] = block
            self._keys[block] = key
            self._owners[block] = owner

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Return the blocks of the first keys, as many as are known one after another."""
        found = []
        for key in keys:
            block = self._published.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Iterable[int]) -> int:
        """Count the blocks without references."""
        return sum(block in self._kept for block in blocks)

    def forget(self, blocks: Iterable[int]) -> list[int]:
        """Unpublish blocks; return those in use without another reference.

        A block comes as often as the caller holds it.
        """
        alone = []
        for block, times in Counter(blocks).items():
            if block in self._keys:
                self._forget(block)
            if self._holders.get(block) == times:
                alone.append(block)
        return alone

    def bring_back(self, keys: Iterable[bytes]) -> list[int]:
        """Take blocks with what the first keys name, as many as are kept outside and fit in."""
        if self.kept is None:
            return []
        wanted = list(takewhile(self.kept.has, islice(keys, self.free_count)))
        if not wanted:
            return []
        blocks = self.allocate(len(wanted))  # which may be what makes some leave
        count = self.kept.restore(blocks, wanted)
        self.release(blocks[count:])
        return blocks[:count]

    def leave(self) -> None:
        """Let what takes over contents have those of all published blocks without references."""
        if self.kept is not None:
            while len(self._kept) > self.kept.room:  # they would push each other out
                block = self._kept.pop()
                self._forget(block)
                self._blank.append(block)
            self._blank.extend(self._evict(len(self._kept)))
            self.kept.close()

    def books(self) -> dict[str, int]:
        """Count the blocks: ``free`` and ``used`` add up to ``total`` at any time."""
        return {"free": self.free_count, "used": self.used_count, "total": self.total}

    def _evict(self, count: int) -> list[int]:
        """Take so many published blocks that are free, or all; their contents are lost here."""
        blocks = [self._kept.pop() for _ in range(min(count, len(self._kept)))]
        if self.kept is not None and blocks:
            self.kept.leave([(each, self._keys[each], self._owners[each]) for each in blocks])
        for block in blocks:
            self._forget(block)
        return blocks

    def _forget(self, block: int) -> None:
        """Unpublish a block."""
        del self._published[self._keys.pop(block)]
        del self._owners[block]
