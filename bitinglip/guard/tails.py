"""Tails eat the rest of a match that may be longer than a stream is held back for."""

import re
from typing import NamedTuple, Protocol

_END = re.compile(r"-----END [A-Z0-9 ]{1,30}-----|[^0-9A-Za-z+/=\s:,\\\"'-]")
_LONGEST_END = 44  #: characters of a line that ends a block


class Eaten(NamedTuple):
    """Tells how far a tail has eaten, and whether it may go on in text that comes later."""

    end: int
    open: bool


class Tail(Protocol):
    def eat(self, text: str, start: int) -> Eaten: ...


class Run:
    """Eats characters of a set."""

    def __init__(self, members: str) -> None:
        self._run = re.compile(f"[{members}]*+")

    def eat(self, text: str, start: int) -> Eaten:
        found = self._run.match(text, start)
        assert found is not None
        return Eaten(found.end(), found.end() == len(text))


class PemBlock:
    """Eats up to the line that ends a block, or to the first character that is in no block."""

    def eat(self, text: str, start: int) -> Eaten:
        found = _END.search(text, start)
        if found is None:
            return Eaten(max(start, len(text) - _LONGEST_END), True)
        if found.end() - found.start() == 1:
            return Eaten(found.start(), False)
        # What shows nothing and follows belongs to the tail; so the next character is awaited.
        whole = found.end() < len(text)
        return Eaten(found.end() if whole else found.start(), not whole)
