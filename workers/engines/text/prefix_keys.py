"""Makes the keys by which blocks of equal beginnings are found. Pure."""

import hashlib
from array import array
from collections.abc import Iterator

KEY_BYTES = 16


class PrefixKeys:
    """Makes the keys of a sequence's full blocks.

    A key is a digest of the block's tokens, of the key of the block before it, and, at the
    beginning, of a scope and the LoRA that the blocks are computed with: sequences of different
    ones share nothing. The scope alone says whose the blocks are. Keys are made when they are first
    asked for.
    """

    def __init__(self, scope: str, block_size: int, *, lora: str | None = None) -> None:
        """``lora``: the path of its files; None: there is none."""
        self.scope = scope
        self._block_size = block_size
        self._keys: list[bytes] = []
        self._last = _digest((scope if lora is None else f"{scope}\0{lora}").encode())

    def of(self, tokens: list[int], first: int, last: int) -> Iterator[bytes]:
        """Yield the keys of the blocks ``first`` to ``last``, without the latter."""
        size = self._block_size
        for block in range(first, last):
            while len(self._keys) <= block:
                start = len(self._keys) * size
                piece = array("I", tokens[start : start + size])
                self._last = _digest(self._last + piece.tobytes())
                self._keys.append(self._last)
            yield self._keys[block]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()
