"""Fold look-alike characters, so that full-width digits and odd dashes hide nothing.

A character becomes one character, so places stay the same; only those that show nothing (zero
width, marks of direction) are left out, and then each place has to be looked up.
"""

import re
import unicodedata

#: these show nothing, and may stand inside a word without being seen
_INVISIBLE = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e01ef"
)
INVISIBLE = re.compile(f"[{_INVISIBLE}]")
_FULL_STOPS = "\u3002\uff61"  #: which domain names take for a dot


class _Folded(dict[int, str]):
    """Maps a character to one that looks the same, and learns each when it is first met."""

    def __missing__(self, code: int) -> str:
        folded = self[code] = _fold(chr(code))
        return folded


def _fold(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    category = unicodedata.category(character)
    if category == "Pd" or character == "\u2212":
        return "-"
    if category == "Zs":
        return " "
    if character in _FULL_STOPS:
        return "."
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 else character


_TABLE = _Folded()


def fold(text: str) -> tuple[str, list[int] | None]:
    """Return the folded text and the place of each of its characters in the text.

    The places end with the length of the text; None where they are all the same.
    """
    if text.isascii():
        return text, None
    if INVISIBLE.search(text) is None:
        return text.translate(_TABLE), None
    places = [place for place, each in enumerate(text) if INVISIBLE.match(each) is None]
    folded = "".join([text[place] for place in places]).translate(_TABLE)
    return folded, [*places, len(text)]
