"""Lists of words: what they find through thin disguises, in streams, and how they are read."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitinglip.guard.words import WordList, WordScan, read_words
from bitinglip.settings.guard import Guard
from bitinglip.settings_loader import SettingsError

LIST = WordList(
    ["badword", "very bad thing", "grim*", "*ware", "straße", "плохо", "悪い言葉", "💣"]
)


def _count(text: str, words: WordList = LIST) -> int:
    return WordScan(words).feed(text, last=True)


@pytest.mark.parametrize(
    "text",
    [
        "a badword here",
        "BadWord",
        "badword",
        "(badword)",
        "ＢＡＤＷＯＲＤ",  # noqa: RUF001  the disguise
        "b\u0430dw\u043erd",  # Cyrillic
        "b\u00e1dw\u00f6rd",
        "ba\u0301dword",
        "bad\u200bword",
        "bad\u00adword",
        "𝐛𝐚𝐝𝐰𝐨𝐫𝐝",  # noqa: RUF001  the disguise
        "a very  bad,\n thing!",
        "VERY-BAD-THING",
        "grimness and more",
        "malware",
        "strasse",
        "STRASSE",
        "это ПЛОХО.",
        "とても悪い言葉です",
        "boom 💣!",
    ],
)
def test_listed_word_is_found_in_disguise(text: str) -> None:
    assert _count(text) == 1


@pytest.mark.parametrize(
    "text",
    ["badwords", "abadword", "very bad", "bad thing", "pilgrim", "wares", "bad word", "455", ""],
)
def test_word_that_is_only_near_is_not_found(text: str) -> None:
    assert _count(text) == 0


_PARTS = st.sampled_from(
    ["badword", "very ", "bad", " thing", "grim", "\u200b", "悪い", "言葉", " ", ", ", "x", "é"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PARTS, max_size=12).map("".join), st.lists(st.integers(1, 9), min_size=1))
def test_words_are_counted_alike_however_a_text_is_cut(text: str, sizes: list[int]) -> None:
    scan, count, rest, number = WordScan(LIST), 0, text, 0
    while rest:
        size = sizes[number % len(sizes)]
        count, rest, number = count + scan.feed(rest[:size]), rest[size:], number + 1
    assert count + scan.feed("", last=True) == _count(text)


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("a bad", "bad"),
        ("a badword", "badword"),
        ("it is a very bad", "very bad"),
        ("it is a Very\u200b B\u00e4d ", "Very\u200b B\u00e4d "),
        ("この悪い", "悪い"),
        ("nothing to hold", ""),
        ("bad luck ", ""),
    ],
)
def test_beginning_of_a_phrase_is_held_back(text: str, held: str) -> None:
    assert text[LIST.begun(text, 0) :] == held


def test_search_takes_linear_time_with_a_long_list() -> None:
    words = WordList([f"{'ab' * 20}{number}" for number in range(5000)])
    seconds = []
    for size in (100_000, 400_000):
        began = time.process_time()
        _count("ab" * (size // 2), words)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 10 * seconds[0] + 0.2


def test_list_is_read_from_settings_and_file(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("# a comment\n\nsecond word\n  third  \n")
    words = read_words(Guard(words=["first"], words_file=str(path)))
    assert len(words) == 3
    assert _count("first second-word THIRD", words) == 3


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"fine\n!!!\n", "line 2 holds no letter"),
        (b"x" * 63, "line 1 is longer than 62"),
        (b"\xff\xfe", "is not UTF-8"),
        (None, "cannot be read (no such file"),
    ],
)
def test_list_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "words"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        read_words(Guard(words_file=str(path)))
    assert problem in str(refused.value)
    assert "guard.words_file" in str(refused.value)


def test_entry_of_the_settings_that_cannot_be_looked_for_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"guard\.words: entry 2 holds no letter"):
        read_words(Guard(words=["fine", "?"]))
