"""Stop strings, fed in every way that tokens could cut the text."""

from itertools import combinations, pairwise

import pytest

from workers.engines.stop_strings import StopFinder


def feed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    finder = StopFinder(stops)
    shown = ""
    for piece in pieces:
        shown += finder.push(piece)
        if finder.stopped:
            return shown, True
    return shown + finder.flush(), False


def cuts(text: str) -> list[list[str]]:
    """Return all ways to cut a text into one to four pieces."""
    ways = []
    for count in range(4):
        for places in combinations(range(1, len(text)), count):
            edges = [0, *places, len(text)]
            ways.append([text[a:b] for a, b in pairwise(edges)])
    return ways


@pytest.mark.parametrize(
    ("stops", "text", "shown"),
    [
        (["END"], "one END two", "one "),
        (["END", "e E"], "one END two", "on"),
        (["aab"], "aaab!", "a"),
        (["\n\n"], "a\nb\n\nc", "a\nb"),
        (["END"], "one EN", None),
        ([], "one END", None),
        (["🦊🦊"], "a🦊b🦊🦊", "a🦊b"),
    ],
)
def test_stop_string_ends_the_text_however_it_is_cut(
    stops: list[str], text: str, shown: str | None
) -> None:
    for pieces in cuts(text):
        assert feed(stops, pieces) == (text if shown is None else shown, shown is not None)


def test_stop_string_beginnings_are_held_back_and_no_more() -> None:
    finder = StopFinder(["STOP"])
    assert finder.push("ab ST") == "ab "
    assert finder.push("A") == "STA"
    assert finder.push("S") == ""
    assert finder.flush() == "S"


def test_stop_string_leaves_nothing_after_it() -> None:
    finder = StopFinder(["."])
    assert finder.push("a.b") == "a"
    assert finder.stopped
    assert finder.flush() == ""
