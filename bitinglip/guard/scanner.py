"""The scanner finds what the recognisers know in a text that comes in pieces, however it is cut.

Where a match begins is decided from left to right; a decision is made once nothing that may still
come can change it. Until then the text from there on is held back: at most 63 characters, since no
candidate is longer, and none where nothing is open.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from bitinglip.guard.folding import fold
from bitinglip.guard.recognisers import LONGEST, RECOGNISERS, Recogniser
from bitinglip.guard.tails import Tail
from bitinglip.settings.guard import PersonalData

_CONTEXT = 4  #: characters before a candidate that its expression looks at
_DIGIT = re.compile("[0-9]")
_NUMBER_LEADS = "+(0-9XYZ"
_NUMBER_AHEAD = r"(?=[0-9AB ().+/\-]{6})"  #: no number is shorter, and most that one meets are
_WORD = re.compile(r"\w")


Kinds = frozenset[PersonalData]
#: returns where, from a place in a text on, something begins that what comes next may complete
Hold = Callable[[str, int], int]


class Piece(NamedTuple):
    """Holds a part of the text that is decided: as it came, or with another text in its place."""

    text: str
    size: int  #: characters of the text that came
    kind: PersonalData | None = None  #: of what is there
    counts: bool = False  #: False for the rest of a match that was told before
    replaced: bool = False  #: by another text


class _Match(NamedTuple):
    begin: int  #: of the candidate; what is meant may begin later
    start: int
    end: int
    kind: PersonalData
    tail: Tail | None


class _Group:
    """Looks for candidates of several recognisers in one pass: those with the same leads."""

    def __init__(self, leads: str, members: list[Recogniser]) -> None:
        self._needs = tuple({each: None for member in members for each in member.needs})
        shared = set.intersection(*map(set, self._needs)) if self._needs else set()
        self._sign = next((each for each in shared if not each.isalnum()), "")
        self._members = members
        # Each of several begins a word: one look tells that for all.
        lead = f"[{leads}]" if len(members) == 1 else rf"[{leads}](?<!\w.)"
        ahead = _NUMBER_AHEAD if leads == _NUMBER_LEADS else ""
        # Nothing else is a group, so the last group tells which of them matches first.
        wholes = [f"({_whole(each)})" for each in members]
        self._lead = re.compile(lead)
        self._candidate = re.compile(f"{lead}{ahead}(?:{'|'.join(wholes)})")
        #: for the recognisers from each number on
        self._others = [
            re.compile(f"[{leads}](?:{'|'.join(wholes[number:])})")
            for number in range(len(members))
        ]
        self.begun = f"{lead}(?:{'|'.join(map(_begun, members))})"

    def may_match(self, text: str) -> bool:
        """Return False for a text that lacks what each match has; it is asked often, and quick."""
        if self._sign not in text:
            return False
        if not self._needs:
            return _DIGIT.search(text) is not None
        return any(map(text.__contains__, self._needs))

    def next(self, text: str, start: int, places: list[int] | None) -> _Match | None:
        """Return the first match from ``start`` on."""
        if places is not None:
            return self._next_in_window(text, start, places)
        while candidate := self._candidate.search(text, start):
            start = candidate.start()
            if match := self._accepted(candidate, text, len(text)):
                return match
            start += 1
        return None

    def _next_in_window(self, text: str, start: int, places: list[int]) -> _Match | None:
        """Look at each candidate as far as a stream waits for it, with all that shows nothing."""
        while lead := self._lead.search(text, start):
            start = lead.start()
            end = bisect_left(places, places[start] + LONGEST)
            candidate = self._others[0].match(text, start, end)
            if candidate is not None and (match := self._accepted(candidate, text, end)):
                return match
            start += 1
        return None

    def _accepted(self, candidate: re.Match[str], text: str, end: int) -> _Match | None:
        """Return the match of the first recogniser that accepts what begins here."""
        found: re.Match[str] | None = candidate
        number = 0
        while found is not None:
            number += found.lastindex or 1
            if match := _accept(self._members[number - 1], found, text, end):
                return match
            if number == len(self._members):
                return None
            found = self._others[number].match(text, found.start(), end)
        return None


def _whole(recogniser: Recogniser) -> str:
    after = f"(?![{recogniser.after}])" if recogniser.after else ""
    return _lead(recogniser) + recogniser.rest.whole + after


def _begun(recogniser: Recogniser) -> str:
    return _lead(recogniser) + recogniser.rest.begun


def _lead(recogniser: Recogniser) -> str:
    """Look back at the first character, which is consumed already, and at the one before it."""
    return f"(?<=[{recogniser.first}])(?<![{recogniser.before}].)"


def _leads_of(recogniser: Recogniser) -> str:
    """Return a set with the first characters, the same for as many recognisers as possible."""
    if recogniser.needs:
        return recogniser.first
    return "A-Z" if recogniser.first.startswith("A-") else _NUMBER_LEADS


def _accept(recogniser: Recogniser, found: re.Match[str], text: str, seen: int) -> _Match | None:
    """``seen``: where what the decision may depend on ends."""
    start, end = found.span()
    candidate = found[0]
    if recogniser.in_groups and _WORD.match(text, end, seen):
        candidate = candidate.rstrip("0123456789")
    meant = recogniser.accept(candidate)
    first, last = meant if isinstance(meant, tuple) else (0, meant)
    if last == 0:
        return None
    tail = recogniser.tail if start + last == end else None
    return _Match(start, start + first, start + last, recogniser.kind, tail)


class Patterns:
    """Compiles the recognisers of some kinds."""

    def __init__(self, recognisers: Iterable[Recogniser]) -> None:
        by_leads: dict[str, list[Recogniser]] = {}
        for each in recognisers:
            by_leads.setdefault(_leads_of(each), []).append(each)
        self.groups = tuple(_Group(*each) for each in by_leads.items())
        any_of = "|".join(each.begun for each in self.groups) or "(?!)"
        self._begun = re.compile(f"(?:{any_of})\\Z")

    def undecided(self, text: str, start: int, places: list[int] | None) -> int:
        """Return where the first candidate begins that what comes next may decide; else the end."""
        end = len(text)
        start = max(start, end - LONGEST)
        while begun := self._begun.search(text, start):
            start = begun.start()
            if places is None or places[end] - places[start] <= LONGEST:
                return start
            start += 1
        return end

    def matches(self, text: str, start: int, places: list[int] | None) -> "_Matches":
        return _Matches(self.groups, text, start, places)


class _Matches:
    """Finds matches from left to right; each begins where the last one and its tail have ended."""

    def __init__(
        self, groups: tuple[_Group, ...], text: str, start: int, places: list[int] | None
    ) -> None:
        self._groups = [each for each in groups if each.may_match(text)]
        self._text, self._places = text, places
        self._next = [each.next(text, start, places) for each in self._groups]

    def after(self, start: int) -> _Match | None:
        """Return the first match from ``start`` on; the earlier recogniser wins a tie."""
        first: _Match | None = None
        for number, known in enumerate(self._next):
            match = known
            if known is not None and known.begin < start:
                match = self._groups[number].next(self._text, start, self._places)
                self._next[number] = match
            if match is not None and (first is None or match.begin < first.begin):
                first = match
        return first


@lru_cache(maxsize=64)
def patterns_of(kinds: Kinds) -> Patterns:
    """Return the compiled recognisers of these kinds."""
    return Patterns(each for each in RECOGNISERS if each.kind in kinds)


class Scanner:
    """Redacts one text that comes in pieces; what it gives does not depend on the cuts."""

    def __init__(self, kinds: Kinds, *, redacts: bool = True, hold: Hold | None = None) -> None:
        """``redacts``: show something else in place of matches; else they are only told.

        ``hold`` says what else is to be held back, of at most 64 characters.
        """
        self._patterns = patterns_of(kinds)
        self._redacts = redacts
        self._hold = hold
        self._context = ""  #: folded characters before what is held
        self._held = ""  #: what is undecided, as it came
        self._tail: Tail | None = None  #: of the last match, if it may go on
        self._tail_kind: PersonalData | None = None

    def feed(self, text: str, *, last: bool = False) -> list[Piece]:
        """Take the next part of the text; return what is decided now, at the last all of it."""
        raw = self._held + text
        folded, places = fold(raw)
        before = len(self._context)
        if before:
            folded = self._context + folded
            if places is not None:
                places = [0] * before + [place + before for place in places]
            raw = self._context + raw
        pieces: list[Piece] = []
        done = self._scan(raw, folded, places, before, last, pieces)
        self._context = folded[max(0, done - _CONTEXT) : done]
        self._held = raw[done if places is None else places[done] :]
        if self._tail is not None and (seen := folded[done:]) != self._held:
            # It is dropped in any case, and what shows nothing would have no bound.
            size = len(self._held) - len(seen)
            pieces.append(Piece("", size, self._tail_kind, replaced=True))
            self._held = seen
        return pieces

    @property
    def held(self) -> int:
        """Return the number of characters that are held back."""
        return len(self._held)

    def give_up(self) -> str:
        """Return what is held back, as it came, because the scan goes on no more."""
        return "" if self._tail is not None else self._held

    def _scan(
        self,
        raw: str,
        text: str,
        places: list[int] | None,
        start: int,
        last: bool,
        pieces: list[Piece],
    ) -> int:
        """Decide what can be decided from ``start`` on; return where that ends."""

        told = start

        def add(
            end: int,
            kind: PersonalData | None = None,
            shown: str | None = None,
            *,
            exact: bool = False,  # without what follows and shows nothing
        ) -> None:
            nonlocal told
            begin, told = told, end
            if places is not None:
                told = places[end - 1] + 1 if exact else places[end]
            if begin < told:
                replaced = kind is not None and self._redacts
                text = (shown or "") if replaced else raw[begin:told]
                pieces.append(Piece(text, told - begin, kind, bool(shown), replaced))

        start = self._eat(text, start, last, add)
        if self._tail is not None:
            return start
        edge = len(text) if last else self._undecided(raw, text, start, places)
        matches = self._patterns.matches(text, start, places) if edge > start else None
        while matches is not None and (match := matches.after(start)):
            if match.begin >= edge:
                break
            add(match.start)
            # The rest of what is shown as it came is text like any other.
            tail = match.tail if self._redacts else None
            add(match.end, match.kind, label(match.kind), exact=tail is None)
            start, self._tail, self._tail_kind = match.end, tail, match.kind
            start = self._eat(text, start, last, add)
            if self._tail is not None:
                return start
            if start > edge:
                edge = len(text) if last else self._undecided(raw, text, start, places)
        edge = max(start, edge)
        add(edge)
        return edge

    def _undecided(self, raw: str, text: str, start: int, places: list[int] | None) -> int:
        """Return where what is held back begins."""
        edge = self._patterns.undecided(text, start, places)
        if self._hold is None:
            return edge
        held = self._hold(raw, start if places is None else places[start])
        return min(edge, held if places is None else max(start, bisect_right(places, held) - 1))

    def _eat(self, text: str, start: int, last: bool, add: Callable[..., None]) -> int:
        """Drop what belongs to the last match; ``self._tail`` stays set if it may go on."""
        if self._tail is None:
            return start
        end, may_go_on = self._tail.eat(text, start)
        if may_go_on and last:
            end, may_go_on = len(text), False
        add(end, self._tail_kind, "")
        if not may_go_on:
            self._tail = None
        return end


def label(kind: PersonalData) -> str:
    """Return what is shown in place of a match: ``[EMAIL]`` and so on."""
    return f"[{kind.upper()}]"


def redact(text: str, kinds: Kinds) -> str:
    """Redact a whole text. It takes as long as the text: see ``Scanner`` for one in pieces."""
    return "".join(piece.text for piece in Scanner(kinds).feed(text, last=True))
