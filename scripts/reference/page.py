"""Writes tables of Markdown."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; text of a cell may hold bars and line breaks."""
    lines = [_line(head), _line(["---"] * len(head)), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    texts = (" ".join(each.split()).replace("|", "\\|") for each in cells)
    return f"| {' | '.join(texts)} |"
