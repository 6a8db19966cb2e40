"""Bounds the memory that the inputs of requests hold, by key and in all. Pure.

Bodies count from their first bytes until they have become a job, and jobs until they have ended.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bitinglip import errors

_SHARE_OF_A_KEY = 0.5  #: the rest is left to other keys


class InputMemory:
    """Counts bytes of inputs from admission to release. ``most``: the bound over all keys."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str] = Counter()
        self.bytes = 0

    def take(self, key: str, size: int) -> None:
        """Count an input. Raises QueueFull if it does not fit beside the others."""
        self.check(key, size)
        self._held[key] += size
        self.bytes += size

    @contextmanager
    def growing(self, key: str) -> Iterator[Callable[[int], None]]:
        """Count an input that arrives in parts, until the block is left.

        The function that it yields counts so many bytes more; it raises QueueFull.
        """
        own = 0

        def grow(size: int) -> None:
            nonlocal own
            self.check(key, size, own)
            self._held[key] += size
            self.bytes += size
            own += size

        try:
            yield grow
        finally:
            if own:
                self.give_back(key, own)

    def check(self, key: str, size: int, own: int = 0) -> None:
        """Raise QueueFull if an input does not fit beside the others.

        An input that is alone is taken whatever its size: the bound of bodies holds for it.
        ``own``: the bytes of this input that are counted already.
        """
        held = self._held[key]
        if held > own and held + size > self._most * _SHARE_OF_A_KEY:
            raise errors.QueueFull(
                "The requests of this key hold too much input; wait for one.",
                details={"bytes_of_key": held},
            )
        if self.bytes > own and self.bytes + size > self._most:
            raise errors.QueueFull("All requests together hold too much input; try again later.")

    def give_back(self, key: str, size: int) -> None:
        self.bytes -= size
        self._held[key] -= size
        if not self._held[key]:
            del self._held[key]
