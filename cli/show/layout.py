"""Lays out tables of text: whole where they fit, else folded at blanks, never inside a name.

An id that is broken over two lines cannot be copied. Where a terminal is too narrow for all
columns, those that may go below their row do; a table that is too wide even so is left to the
terminal.
"""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len

_GAP = 2
_LEAST = 24  #: of a column that may go below, or it does
_EMPTY = ("-", "0", "0.00")  #: what is not worth a line below a row


def lay_out(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    right: Sequence[str] = (),
    below: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the lines, the header first; ``right`` names columns of numbers."""
    every = range(len(columns))
    lows = [i for i in every if columns[i] in below]
    whole = [_longest(column, rows, i) for i, column in enumerate(columns)]
    least = [min(whole[i], _LEAST) if i in lows else whole[i] for i in every]
    shown: list[int] = list(every)
    if (widths := _fit(whole, least, width)) is None:
        shown = [i for i in every if i not in lows]
        words = [_longest_word(columns[i], rows, i) for i in shown]
        kept = [whole[i] for i in shown]
        widths = _fit(kept, words, width) or kept
    under = [i for i in lows if i not in shown]
    rights = [columns[i] in right for i in shown]
    yield from _lines([columns[i] for i in shown], widths, rights)
    for row in rows:
        yield from _lines([row[i] for i in shown], widths, rights)
        said = [f"{columns[i].lower()}: {row[i]}" for i in under if row[i] not in _EMPTY]
        room = max(_LEAST, width - 2)
        yield from (f"  {line}" for line in _folded("; ".join(said), room) if said)


def _longest(column: str, rows: Sequence[Sequence[str]], index: int) -> int:
    return max(cell_len(text) for text in (column, *(row[index] for row in rows)))


def _longest_word(column: str, rows: Sequence[Sequence[str]], index: int) -> int:
    words = (word for row in rows for word in row[index].split())
    return max(cell_len(text) for text in (column, *words))


def _fit(whole: Sequence[int], least: Sequence[int], width: int) -> list[int] | None:
    """Narrow the columns that can be, the one with the most to give first; None if too wide."""
    room = width - _GAP * (len(whole) - 1)
    widths = list(whole)
    while (over := sum(widths) - room) > 0:
        most = max(range(len(widths)), key=lambda i: widths[i] - least[i])
        if (given := min(over, widths[most] - least[most])) <= 0:
            return None
        widths[most] -= given
    return widths


def _lines(cells: Sequence[str], widths: Sequence[int], rights: Sequence[bool]) -> Iterator[str]:
    parts = [_folded(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for at in range(max(len(part) for part in parts)):
        line = (
            _padded(part[at] if at < len(part) else "", width, right)
            for part, width, right in zip(parts, widths, rights, strict=True)
        )
        yield (" " * _GAP).join(line).rstrip()


def _folded(text: str, width: int) -> list[str]:
    """Break a text at blanks; a word that is longer than a line stays whole."""
    lines = [""]
    for word in text.split(" ") if cell_len(text) > width else [text]:
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cell_len(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _padded(text: str, width: int, right: bool) -> str:
    blanks = " " * max(0, width - cell_len(text))
    return blanks + text if right else text + blanks
