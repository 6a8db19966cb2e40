"""Bounds the memory that the inputs of requests in flight hold, by key and in all. Pure."""

from collections import Counter

from bitinglip import errors

_SHARE_OF_A_KEY = 0.5  #: the rest is left to other keys


class InputMemory:
    """It counts bytes from admission to release. ``most``: the bound over all keys."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str] = Counter()
        self.bytes = 0

    def take(self, key: str, size: int) -> None:
        """Count an input. Raises QueueFull if it does not fit beside the others."""
        self.check(key, size)
        self._held[key] += size
        self.bytes += size

    def check(self, key: str, size: int) -> None:
        """Raise QueueFull if an input does not fit beside the others.

        An input that is alone is taken whatever its size: the bound of bodies holds for it.
        """
        held = self._held[key]
        if held and held + size > self._most * _SHARE_OF_A_KEY:
            raise errors.QueueFull(
                "The requests of this key that are in flight hold too much input; wait for one.",
                details={"bytes_of_key": held},
            )
        if self.bytes and self.bytes + size > self._most:
            raise errors.QueueFull("The requests in flight hold too much input; try again later.")

    def give_back(self, key: str, size: int) -> None:
        self.bytes -= size
        self._held[key] -= size
        if not self._held[key]:
            del self._held[key]
