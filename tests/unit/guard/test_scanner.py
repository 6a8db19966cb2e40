"""A text that comes in pieces is redacted as the whole is, whatever the cuts, in linear time."""

import time
import typing

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitinglip.guard.scanner import Scanner, redact
from bitinglip.guard.words import WordList
from bitinglip.settings.guard import PersonalData
from tests.unit.guard.test_recognisers import FOUND

ALL = frozenset(typing.get_args(PersonalData))
_EXAMPLES = [text for texts in FOUND.values() for text, _ in texts]
_GLUE = [
    *" .-@+:=pZ4\n",
    "\u200b",
    "\u200b" * 20,
    "\u200b" * 60,
    "日本",
    "ü",
    "hello ",
    "(0",
    "eyJ",
    "1-" * 9,
]
_TEXT = st.lists(st.sampled_from(_EXAMPLES + _GLUE) | st.text(max_size=3), max_size=9).map("".join)
_SIZES = st.lists(st.sampled_from([1, 1, 2, 3, 5, 8, 20, 70]), min_size=1)


def _pieces(text: str, sizes: list[int]) -> list[str]:
    pieces: list[str] = []
    while text:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@settings(max_examples=250, deadline=None)
@given(_TEXT, _SIZES)
@example("+49 30 1234567 " + "\u200b" * 60 + "00:1A:2B:3C:4D:5E", [70])
@example("4111 1111 1111 1111" + "\u200b" * 60 + "AB 12 34 56 C", [70])
@example("-----BEGIN PRIVATE KEY-----\nM\n-----END PRIVATE KEY-----\u200b\u200bx", [59, 1])
@example("123-45-6789" + "\u200b" * 30 + "a@b.co-" + "\u200b" * 30 + "hello9", [8])
def test_stream_is_redacted_as_the_whole_text_is(text: str, sizes: list[int]) -> None:
    scanner, shown, came, taken = Scanner(ALL), "", 0, 0
    whole = redact(text, ALL)
    for piece in _pieces(text, sizes):
        came += len(piece)
        for each in scanner.feed(piece):
            shown, taken = shown + each.text, taken + each.size
        assert whole.startswith(shown)  # nothing is shown that would be redacted
        assert came - taken <= 64
    last = scanner.feed("", last=True)
    assert shown + "".join(each.text for each in last) == whole
    assert taken + sum(each.size for each in last) == len(text)


@settings(max_examples=200, deadline=None)
@given(_TEXT, _SIZES, st.booleans())
@example("-----BEGIN PRIVATE KEY-----\nM\n-----END PRIVATE KEY-----\u200b", [1], False)
def test_stream_that_holds_more_back_shows_the_same(
    text: str, sizes: list[int], redacts: bool
) -> None:
    """Phrases of a list are awaited beside personal data; those here never end."""
    phrases = WordList(["hello hello you", "4111 1111 9", "mail*zz", "日本語"])
    scanner = Scanner(ALL, redacts=redacts, hold=phrases.begun)
    shown, came, taken = "", 0, 0
    for piece in _pieces(text, sizes):
        came += len(piece)
        for each in scanner.feed(piece):
            shown, taken = shown + each.text, taken + each.size
        assert came - taken <= 64
    shown += "".join(each.text for each in scanner.feed("", last=True))
    assert shown == (redact(text, ALL) if redacts else text)


@pytest.mark.parametrize("text", _EXAMPLES)
def test_stream_cut_at_every_character_shows_no_part_of_a_match(text: str) -> None:
    whole = redact(text, ALL)
    for cut in range(1, len(text)):
        scanner = Scanner(ALL)
        first = "".join(each.text for each in scanner.feed(text[:cut]))
        rest = "".join(each.text for each in scanner.feed(text[cut:], last=True))
        assert whole.startswith(first)
        assert first + rest == whole


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("A sentence ends here. ", ""),
        ("A list: one, two, (three)", ""),
        ("wholly 日本語", ""),
        ("a word", "word"),
        ("mail john@exam", "john@exam"),
        ("card 4111 1111 ", "4111 1111 "),
    ],
)
def test_stream_is_held_back_only_while_something_is_open(text: str, held: str) -> None:
    shown = "".join(each.text for each in Scanner(ALL).feed(text))
    assert shown + held == text


def test_match_without_an_end_is_dropped_as_it_comes() -> None:
    scanner = Scanner(ALL)
    shown = "".join(each.text for each in scanner.feed("sk-" + "a1" * 40))
    for _ in range(1000):
        assert [each.text for each in scanner.feed("b2" * 500)] == [""]
    assert scanner.held == 0
    shown += "".join(each.text for each in scanner.feed(" end", last=True))
    assert shown == "[SECRET] end"


@pytest.mark.parametrize(
    "unit",
    [
        *("a", "1-", "1 ", "4-", "4444-", "@", "a@", "a@b.", "+1 ", "DE89 ", "A1", "password="),
        *("::", "api_key=a1", "-----BEGIN ", "x.", "\u200b", "\uff11", "eyJ", " ", "a1b2=", "(0"),
    ],
)
def test_scan_of_hostile_text_takes_linear_time(unit: str) -> None:
    """Four times the text takes about four times as long, never sixteen times."""
    seconds = [_seconds(unit, size) for size in (75_000, 300_000)]
    assert seconds[1] < 10 * seconds[0] + 0.2


@pytest.mark.parametrize("unit", ["a", "1-1-1-"])
def test_scan_of_a_hostile_megabyte_ends_soon(unit: str) -> None:
    assert _seconds(unit, 1_000_000) < 10


def _seconds(unit: str, size: int) -> float:
    """Measure the seconds of processor time that a text of so many characters takes."""
    text = (unit * size)[:size]
    began = time.process_time()
    redact(text, ALL)
    return time.process_time() - began
