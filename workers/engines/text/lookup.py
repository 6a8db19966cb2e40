"""Guesses what follows in a text by what followed the same tokens earlier in it. Pure: no torch.

Texts that quote, edit or repeat something say much of it word for word. An index holds where the
last tokens have been before; it costs a few operations a token, and 8 bytes.
"""

from array import array
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Ids = TypeVar("_Ids", int, npt.NDArray[np.int64])

_NGRAM = 3  #: tokens that must be the same
_MOST_MATCHED = 8  #: tokens that are compared at most: so many are as good as all
_PRIMES = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)
_LEAST_SLOTS, _MOST_SLOTS = 1 << 10, 1 << 18  #: of 4 bytes; beyond, later places replace earlier


class LookupIndex:
    """Finds the latest earlier place of a text's last tokens. Belongs to one text, which grows."""

    def __init__(self) -> None:
        self._slots = array("i")  #: by hash: the place after the latest three tokens of it; 0: none
        self._indexed = 0  #: places of the text that are in it
        self._found = 0  #: the place that was found for the last of them

    def guess(self, tokens: list[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that may follow a text; none if its end is new.

        The longer the beginning and the end agree, the more tokens are returned. A repetition is
        continued beyond the end of the text. ``tokens`` are those of the last call, and more.
        """
        length = len(tokens)
        if length <= _NGRAM:
            return []
        if self._indexed < length:
            self._index(tokens, length - 1)
            slot = _hash(*tokens[-_NGRAM:]) & (len(self._slots) - 1)
            self._found, self._slots[slot] = self._slots[slot], length
            self._indexed = length
        place = self._found
        matched = _matched(tokens, place)
        if matched < _NGRAM:
            return []
        count = min(most, 1 << (matched - _NGRAM + 1))
        if place + count <= length:
            return tokens[place : place + count]
        return [tokens[place + number % (length - place)] for number in range(count)]

    def _index(self, tokens: list[int], last: int) -> None:
        """Note the places up to ``last`` that are not in the index yet."""
        if 2 * len(tokens) > len(self._slots) and len(self._slots) < _MOST_SLOTS:
            self._build(tokens, last)
            return
        most = len(self._slots) - 1
        for place in range(max(self._indexed + 1, _NGRAM), last + 1):
            self._slots[_hash(*tokens[place - _NGRAM : place]) & most] = place

    def _build(self, tokens: list[int], last: int) -> None:
        """Index all of a text that has outgrown the index, with room to grow twice as long."""
        size = min(max(_LEAST_SLOTS, 1 << (4 * len(tokens) - 1).bit_length()), _MOST_SLOTS)
        self._slots = array("i", bytes(4 * size))
        ids = np.array(tokens[:last], dtype=np.int64)
        hashes = _hash(*(ids[start : last - _NGRAM + 1 + start] for start in range(_NGRAM)))
        # Of places with the same hash the last one stays.
        np.frombuffer(self._slots, dtype=np.int32)[hashes & (size - 1)] = np.arange(
            _NGRAM, last + 1, dtype=np.int32
        )


def _hash(first: _Ids, second: _Ids, third: _Ids) -> _Ids:
    mixed = first * _PRIMES[0] ^ second * _PRIMES[1] ^ third * _PRIMES[2]
    return mixed ^ mixed >> 17


def _matched(tokens: list[int], place: int) -> int:
    """Count the tokens before a place that are those at the end, up to a few."""
    length = len(tokens)
    most = min(_MOST_MATCHED, place)
    for count in range(most):
        if tokens[place - 1 - count] != tokens[length - 1 - count]:
            return count
    return most
