"""Chooses which free block loses its contents: the longest unused, with regard to whose it is.

An owner that floods the cache would push out what others use. So a block of an owner that holds no
more than its share is passed over for a while, and the owner that holds most loses its own longest
unused one. Every operation takes the same time, however many blocks and owners there are. Pure.
"""

_TURNS = 4  #: of all blocks, for which a block of a modest owner is passed over


class FairLru:
    """Orders blocks, each with its owner."""

    def __init__(self, blocks: int) -> None:
        """``blocks``: that there are, in use or not."""
        self._patience = _TURNS * blocks
        self._clock = 0  #: blocks that were chosen so far
        self._since: dict[int, int] = {}  #: by block: the clock when it came, the first come first
        self._owners: dict[int, str] = {}
        self._held: dict[str, dict[int, None]] = {}  #: by owner: blocks, the first come first
        self._owning: dict[int, dict[str, None]] = {}  #: owners by how many they hold
        self._most = 0  #: blocks that one owner holds

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, block: int) -> bool:
        return block in self._since

    def add(self, block: int, owner: str) -> None:
        """Add a block that has just become free."""
        self._since[block] = self._clock
        self._owners[block] = owner
        held = self._held.setdefault(owner, {})
        held[block] = None
        self._count(owner, len(held) - 1, len(held))

    def remove(self, block: int) -> None:
        """Take a block out. Raises KeyError if it is not there."""
        del self._since[block]
        owner = self._owners.pop(block)
        held = self._held[owner]
        del held[block]
        if not held:
            del self._held[owner]
        self._count(owner, len(held) + 1, len(held))

    def pop(self) -> int:
        """Take out the block to lose its contents next. Raises StopIteration if there is none."""
        block = next(iter(self._since))
        modest = len(self._held[self._owners[block]]) * len(self._held) <= len(self._since)
        if modest and self._clock - self._since[block] < self._patience:
            largest = next(iter(self._owning[self._most]))
            block = next(iter(self._held[largest]))
        self.remove(block)
        self._clock += 1
        return block

    def _count(self, owner: str, before: int, after: int) -> None:
        """Note how many blocks an owner holds: one more or one less than before."""
        if before:
            same = self._owning[before]
            del same[owner]
            if not same:
                del self._owning[before]
        if after:
            self._owning.setdefault(after, {})[owner] = None
        # The owner has only moved to the next number.
        if after > self._most or (before == self._most and before not in self._owning):
            self._most = after
