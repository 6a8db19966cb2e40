"""Reads JSON's escapes in a text that comes in parts, so that they hide nothing from a scan.

What is scanned has one character for each escape; what is shown is the text as it came, but for
what was replaced.
"""

import re
from collections import deque
from collections.abc import Iterable

from bitinglip.guard.scanner import Piece

_HEX = "[0-9a-fA-F]"
_HIGH, _LOW = rf"\\u[dD][89abAB]{_HEX}{{2}}", rf"\\u[dD][c-fC-F]{_HEX}{{2}}"
_SHORT = r'["\\/bfnrt]'
#: the beginning of a low one, after which the text ends
_OPEN_LOW = rf"(?:\\(?:u(?:[dD](?:[c-fC-F]{_HEX}?)?)?)?)?\Z"
#: Characters that are no escapes, one escape or pair of them, or a backslash that begins none;
#: nothing where the next part may tell what it is.
_STEP = re.compile(
    rf"[^\\]+|{_HIGH}{_LOW}|{_HIGH}(?!{_OPEN_LOW})|(?!{_HIGH})\\u{_HEX}{{4}}|\\{_SHORT}"
    rf"|\\(?!{_SHORT}|u{_HEX}{{4}}|(?:u{_HEX}{{0,3}})?\Z)"
)
#: the same, where no part follows
_LAST_STEP = re.compile(rf"\\u{_HEX}{{4}}|.", re.DOTALL)
_CONTROL = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_NO_CHARACTER = "\ufffd"


class Escapes:
    """Keeps what came of one text until it is known how it is shown."""

    def __init__(self) -> None:
        self._begun = ""  #: an escape that is not whole
        self._units: deque[str] = deque()  #: what came, by the characters that it reads as

    def feed(self, text: str, *, last: bool = False) -> str:
        """Return the next part as it reads; an escape that is not whole is held back."""
        text, self._begun = self._begun + text, ""
        units: list[str] = []
        at = 0
        while step := _STEP.match(text, at):
            units += step[0] if step[0][0] != "\\" else (step[0],)
            at = step.end()
        if last:
            units += _LAST_STEP.findall(text, at)
        else:
            self._begun = text[at:]
        self._units += units
        return "".join(map(_read, units))

    def shown(self, pieces: Iterable[Piece]) -> str:
        """Return pieces of what was read as they came, but for those that were replaced."""
        found: list[str] = []
        for piece in pieces:
            came = [self._units.popleft() for _ in range(piece.size)]
            found += (piece.text,) if piece.replaced else came
        return "".join(found)


def _read(unit: str) -> str:
    """Return the one character that a unit stands for."""
    if len(unit) == 1:
        return unit
    if unit[1] != "u":
        return _CONTROL.get(unit[1], unit[1])
    if len(unit) > len(r"\u0000"):
        high, low = int(unit[2:6], 16), int(unit[8:12], 16)
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    code = int(unit[2:], 16)
    return _NO_CHARACTER if 0xD800 <= code < 0xE000 else chr(code)
