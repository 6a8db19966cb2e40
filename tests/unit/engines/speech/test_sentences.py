"""Splitting texts into sentences, of which nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engines.speech.sentences import split_sentences


def cut(text: str, longest: int = 1000) -> list[str]:
    return split_sentences(text, lambda piece: len(piece) <= longest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "Go!" Then he left.', ['He said "Go!"', "Then he left."]),
        ("Dr. Smith met Mr. J. Doe. They spoke.", ["Dr. Smith met Mr. J. Doe.", "They spoke."]),
        ("It costs 3.50 today. Fine.", ["It costs 3.50 today.", "Fine."]),
        ("你好。你是谁？我很好！", ["你好。", "你是谁？", "我很好！"]),
        ("नमस्ते। आप कैसे हैं?", ["नमस्ते।", "आप कैसे हैं?"]),
        ("A title\nThen text.", ["A title", "Then text."]),
        ("Wait… what?", ["Wait…", "what?"]),
        ("  \n ", []),
    ],
)
def test_sentences_end_at_marks_but_not_after_abbreviations(text: str, expected: list[str]) -> None:
    assert cut(text) == expected


def test_sentences_that_are_too_long_are_cut_at_clauses_then_words_then_anywhere() -> None:
    assert cut("aaa bbb, ccc ddd, eee", 10) == ["aaa bbb,", "ccc ddd,", "eee"]
    assert cut("aaa bbb ccc ddd", 8) == ["aaa bbb", "ccc ddd"]
    assert "".join(cut("a" * 25, 10)) == "a" * 25


@given(st.text(alphabet="ab ,.!?;:\n\"'。！，漢字-", max_size=300), st.integers(1, 40))
def test_sentences_lose_nothing_and_every_piece_fits(text: str, longest: int) -> None:
    pieces = cut(text, longest)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= longest for piece in pieces)
