"""Keeps the contents of cache blocks in RAM, by the keys of their prefixes, for as long as there is
room: the least recently used go first, with regard to whose they are.

All is in one piece of memory: a head that says whose contents they are, an entry for each slot, the
slots. So what one process has kept another can find, whatever ended the first: an entry is marked
as good after its slot is written, and as bad before.
"""

import hashlib
import mmap
import struct

import torch
from torch import Tensor

from workers.engines.text.fair_lru import FairLru
from workers.engines.text.prefix_keys import KEY_BYTES

_MARK_BYTES = 32
_OWNER_BYTES = 8
#: The key, a digest of whose it is, and when it was used last; 0: not good.
_ENTRY = struct.Struct(f"<{KEY_BYTES}s{_OWNER_BYTES}sQ")
_PAGE = mmap.PAGESIZE


class KeptBlocks:
    """Holds up to as many blocks as the memory has room for."""

    def __init__(self, memory: mmap.mmap, block_bytes: int, mark: bytes) -> None:
        """Take over what the memory holds, if it has the same mark.

        ``mark``: of all that decides what a block's bytes mean, 32 bytes. Raises ValueError if the
        memory is too small for one block.
        """
        self._memory = memory
        size = len(memory) - _MARK_BYTES - 2 * _PAGE
        self.slots = max(0, size // (block_bytes + _ENTRY.size))
        if not self.slots:
            raise ValueError("the memory is too small for one block")
        data = -(-(_MARK_BYTES + self.slots * _ENTRY.size) // _PAGE) * _PAGE
        self._data = torch.frombuffer(
            memory, dtype=torch.uint8, count=self.slots * block_bytes, offset=data
        ).view(self.slots, block_bytes)
        self._clock = 0
        self._found: dict[bytes, int] = {}  #: slots
        self._entries: dict[int, tuple[bytes, bytes]] = {}  #: keys and owners, by slot
        self._order = FairLru(self.slots)  #: of slots
        if memory[:_MARK_BYTES] == mark:
            self._take_over()
        else:
            self._begin(mark)
        taken = set(self._found.values())
        self._free = [slot for slot in range(self.slots - 1, -1, -1) if slot not in taken]

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, key: bytes) -> bool:
        return key in self._found

    def get(self, key: bytes) -> Tensor | None:
        """Return a block's bytes, valid until the next ``put``; None if it is not kept."""
        slot = self._found.get(key)
        if slot is None:
            return None
        self._use(slot)
        return self._data[slot]

    def put(self, key: bytes, block: Tensor, owner: str = "") -> None:
        """Keep a block's bytes, [block_bytes] uint8 on the CPU, in place of one that is less used.

        ``owner``: whose it is. One who keeps many makes room by its own before others lose theirs.
        """
        slot = self._found.get(key)
        if slot is None:
            slot = self._free.pop() if self._free else self._evict()
            digest = _digest(owner)
            self._write(slot, key, digest, 0)
            self._data[slot].copy_(block)
            self._enter(key, digest, slot)
        self._use(slot)

    def touch(self, key: bytes) -> bool:
        """Return whether a block is kept, which is the most recently used one then."""
        slot = self._found.get(key)
        if slot is not None:
            self._use(slot)
        return slot is not None

    def _enter(self, key: bytes, owner: bytes, slot: int) -> None:
        self._found[key] = slot
        self._entries[slot] = key, owner
        self._order.add(slot, owner.hex())

    def _evict(self) -> int:
        """Return a slot whose contents are forgotten."""
        slot = self._order.pop()
        key, _ = self._entries.pop(slot)
        del self._found[key]
        return slot

    def _use(self, slot: int) -> None:
        key, owner = self._entries[slot]
        self._order.remove(slot)
        self._order.add(slot, owner.hex())
        self._clock += 1
        self._write(slot, key, owner, self._clock)

    def _write(self, slot: int, key: bytes, owner: bytes, used: int) -> None:
        _ENTRY.pack_into(self._memory, _MARK_BYTES + slot * _ENTRY.size, key, owner, used)

    def _take_over(self) -> None:
        entries = self._memory[_MARK_BYTES : _MARK_BYTES + self.slots * _ENTRY.size]
        found = [
            (used, slot, key, owner)
            for slot, (key, owner, used) in enumerate(_ENTRY.iter_unpack(entries))
            if used
        ]
        # Numbered from 1 again: a worker that was broken into may have written any number, and a
        # key twice.
        for _, slot, key, owner in sorted(found):
            if key not in self._found:
                self._enter(key, owner, slot)
                self._use(slot)

    def _begin(self, mark: bytes) -> None:
        self._memory[: _MARK_BYTES + self.slots * _ENTRY.size] = bytes(
            _MARK_BYTES + self.slots * _ENTRY.size
        )
        self._memory[:_MARK_BYTES] = mark


def _digest(owner: str) -> bytes:
    """Return what stands for an owner in memory."""
    return hashlib.blake2b(owner.encode(), digest_size=_OWNER_BYTES).digest()
