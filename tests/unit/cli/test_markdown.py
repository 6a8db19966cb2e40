"""Answers are set as Markdown while they come, whatever the pieces."""

import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cli.stream.markdown import MarkdownWriter, end_of_block

TEXT = (
    "# Head\n\nSome **bold** text.\n\n```python\nx = 1\n\ny = 2\n```\nAfter it.\n\n1. one\n2. two\n"
)


def shown(pieces: list[str], *, terminal: bool = False) -> str:
    out = io.StringIO()
    screen = Console(file=out, width=60, height=10, force_terminal=terminal, color_system=None)
    writer = MarkdownWriter(screen)
    for piece in pieces:
        writer.write(piece)
    writer.close()
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("", None),
        ("a", None),
        ("a\n", None),
        ("a\n\n", "a\n\n"),
        ("\n\na\n\nb", "\n\na\n\n"),
        ("```\na\n\nb\n", None),
        ("```\na\n\nb\n```\nc", "```\na\n\nb\n```\n"),
        ("a\n```\nb\n```\n", "a\n"),
        ("````\n```\n````\n", "````\n```\n````\n"),
        ("~~~\n```\n~~~\n", "~~~\n```\n~~~\n"),
    ],
)
def test_markdown_block_ends_at_a_blank_line_or_a_fence(text: str, block: str | None) -> None:
    end = end_of_block(text)
    assert (None if end is None else text[:end]) == block


def test_markdown_is_set() -> None:
    found = shown([TEXT])
    assert "**" not in found
    assert "```" not in found
    for part in ("Head", "bold", "x = 1", "y = 2", "After it.", "1 one", "2 two"):
        assert part in found


@settings(max_examples=15)
@given(st.lists(st.integers(0, len(TEXT)), max_size=8).map(sorted))
def test_markdown_is_the_same_whatever_the_pieces(cuts: list[int]) -> None:
    places = [0, *cuts, len(TEXT)]
    pieces = [TEXT[a:b] for a, b in itertools.pairwise(places)]
    assert shown(pieces) == shown([TEXT])


def test_markdown_of_an_answer_that_breaks_off_shows_all_that_came() -> None:
    assert "half of it" in shown(["```\nhalf of ", "it"])


def test_markdown_obeys_no_control_characters_and_hides_no_link() -> None:
    found = shown(["\x1b]0;title\x07 [text](http://example.com/x)\n\n"])
    assert "\x1b]0" not in found
    assert "http://example.com/x" in found
