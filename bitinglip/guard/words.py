"""Finds the operator's words and phrases in linear time and through thin disguises.

Texts and lists are compared in a plain form: lower case, letters without accents, look-alikes of
Latin letters as these, nothing invisible, and one space for whatever stands between words.
"""

import hashlib
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from bitinglip.guard.folding import INVISIBLE
from bitinglip.settings.guard import Guard
from bitinglip.settings_loader import SettingsError

LONGEST = 62  #: characters of a phrase in its plain form, so that a stream can hold it back
_HELD = 64  #: characters of a stream that are held back at the most
_MOST_BYTES = 16 << 20  #: of a file
_SPACES = re.compile(" {2,}")
#: scripts that are written without spaces between words
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_ACCENTED_BELOW = "\u0530"  #: Latin, Greek and Cyrillic: a letter without its accent is the letter
_ACCENTS = re.compile("[\u0300-\u036f\u20d0-\u20ff]")
_LOOK_ALIKES = dict(
    zip(
        "авекмнорстухіјѕһԁԛԝγαβεικνορτυχıłøđħɑɡ",
        "abekmhopctyxijshdqwyabeikvoptuxilodhag",
        strict=True,
    )
)


class WordList:
    """Holds words and phrases; ``*`` at an end of one stands for the rest of a word."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Raise ValueError for an entry that cannot be looked for; its message names none."""
        patterns = {_pattern(number, entry) for number, entry in enumerate(entries, 1)}
        self._patterns = sorted(patterns)
        self._firsts = frozenset(each.lstrip(" ")[0] for each in patterns)
        self.find = _matcher(self._patterns)
        #: tells lists apart that find different words
        self.digest = hashlib.sha256("\n".join(self._patterns).encode()).digest()

    def __len__(self) -> int:
        return len(self._patterns)

    def begun(self, text: str, start: int) -> int:
        """Return where the first phrase begins that what comes next may complete; else the end.

        Nothing before ``start`` is looked for, nor anything longer than a stream is held back for.
        """
        for place in range(max(start, len(text) - _HELD), len(text)):
            if _PLAIN[ord(text[place])][:1] not in self._firsts:
                continue
            rest = plain(text[place:])
            first_of_word = place == 0 or _PLAIN[ord(text[place - 1])] in (" ", "")
            if self._begins(rest) or (first_of_word and self._begins(f" {rest}")):
                return place
        return len(text)

    def _begins(self, text: str) -> bool:
        place = bisect_left(self._patterns, text)
        return place < len(self._patterns) and self._patterns[place].startswith(text)


class WordScan:
    """Counts what a list has in one text that comes in parts."""

    def __init__(self, words: WordList) -> None:
        self._words = words
        self._tail = " "  #: the end of what has come, in its plain form

    def feed(self, text: str, *, last: bool = False) -> int:
        """Return how many words and phrases end in this part."""
        new = plain(text)
        if self._tail.endswith(" "):
            new = new.removeprefix(" ")
        whole = self._tail + new
        if last and not whole.endswith(" "):
            whole += " "
        before = len(self._tail)
        self._tail = whole[-LONGEST - 2 :]
        return sum(end > before for _, _, end in self._words.find(whole))


class _Plain(dict[int, str]):
    """Maps a character to its plain form, and learns each when it is first met."""

    def __missing__(self, code: int) -> str:
        found = self[code] = _plain_character(chr(code))
        return found


def _plain_character(character: str) -> str:
    if INVISIBLE.match(character) or _ACCENTS.match(character):
        return ""
    folded = unicodedata.normalize("NFKC", character).casefold()
    if folded < _ACCENTED_BELOW:
        folded = _ACCENTS.sub("", unicodedata.normalize("NFKD", folded))
    return "".join(_LOOK_ALIKES.get(each, each) if _is_shown(each) else " " for each in folded)


def _is_shown(character: str) -> bool:
    """Return whether a character is part of a word: letters, digits, and signs such as emoji."""
    category = unicodedata.category(character)[0]
    return category in "LNM" or (category == "S" and not character.isascii())


_PLAIN = _Plain()


def plain(text: str) -> str:
    """Return the plain form of a text; its parts have the parts of it."""
    return _SPACES.sub(" ", text.translate(_PLAIN))


def _matcher(patterns: list[str]) -> Callable[[str], Iterable[tuple[int, int, int]]]:
    """Return what finds all patterns in a text: their numbers, and where each begins and ends."""
    if not patterns:
        return lambda _text: ()
    from ahocorasick_rs import AhoCorasick  # no other module needs it

    return partial(AhoCorasick(patterns).find_matches_as_indexes, overlapping=True)


def _pattern(number: int, entry: str) -> str:
    entry = entry.strip()
    words = plain(entry).strip(" ")
    if not words:
        raise ValueError(f"entry {number} holds no letter and no digit")
    if len(words) > LONGEST:
        raise ValueError(f"entry {number} is longer than {LONGEST} characters")
    before = "" if entry.startswith("*") or _UNSPACED.match(words) else " "
    after = "" if entry.endswith("*") or _UNSPACED.match(words[-1]) else " "
    return f"{before}{words}{after}"


def read_words(guard: Guard) -> WordList:
    """Read the list of the settings and their file, which has one entry a line and comments.

    Raises SettingsError, which names the setting and the line, and no entry.
    """
    try:
        inline = WordList(guard.words)
    except ValueError as error:
        raise SettingsError([f"guard.words: {error}"]) from None
    if guard.words_file is None:
        return inline
    path = Path(guard.words_file)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
        lines = data.decode("utf-8-sig").splitlines()
        entries = {number: line for number, line in enumerate(lines, 1) if _is_entry(line)}
        return WordList([*guard.words, *_checked(entries)])
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SettingsError([f"guard.words_file: {path} cannot be read ({reason})"]) from error
    except UnicodeDecodeError:
        raise SettingsError([f"guard.words_file: {path} is not UTF-8"]) from None
    except ValueError as error:
        raise SettingsError([f"guard.words_file: {path}: {error}"]) from None


def _is_entry(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _checked(entries: dict[int, str]) -> list[str]:
    """Raise ValueError with the number of a line that cannot be looked for."""
    for number, line in entries.items():
        try:
            _pattern(number, line)
        except ValueError as error:
            raise ValueError(str(error).replace("entry", "line", 1)) from None
    return list(entries.values())
