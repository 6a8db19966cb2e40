"""Keeps the rows of a decode batch at their places, so that little of it changes. Pure."""

from collections.abc import Sequence as Rows

from workers.engines.text.blocks import NULL_BLOCK
from workers.engines.text.plan import Chunk, Sequence


class Seats:
    """Knows which sequence has which row, and what a table of the rows' blocks holds."""

    def __init__(self, width: int) -> None:
        """``width``: blocks of the longest sequence, the numbers of a row of the table."""
        self._width = width
        self._rows: dict[Sequence, int] = {}
        #: of each row, the list of blocks that was written, which only grows, and how much of it
        self._written: dict[int, tuple[list[int], int]] = {}

    def arrange(self, chunks: Rows[Chunk]) -> list[Chunk]:
        """Return chunks in the order of their rows, from 0 on; who has one of these keeps it."""
        count = len(chunks)
        of = {chunk.sequence: chunk for chunk in chunks}
        rows = {row: each for each, row in self._rows.items() if row < count and each in of}
        seated = set(rows.values())
        free = (row for row in range(count) if row not in rows)
        newcomers = [each for each in of if each not in seated]
        rows.update(zip(free, newcomers, strict=True))
        self._rows = {each: row for row, each in rows.items()}
        return [of[rows[row]] for row in range(count)]

    def changes(self, order: Rows[Chunk]) -> tuple[list[int], list[int]]:
        """Return which numbers of the table differ for chunks, and what they are now.

        Where a row has become shorter, what is behind its end is block 0.
        """
        places: list[int] = []
        values: list[int] = []
        for row, chunk in enumerate(order):
            blocks = chunk.sequence.blocks
            before, written = self._written.get(row, (None, 0))
            start = written if before is blocks else 0
            new = blocks[start:]
            if before is not blocks:
                new += [NULL_BLOCK] * (written - len(blocks))
            first = row * self._width + start
            places += range(first, first + len(new))
            values += new
        return places, values

    def wrote(self, order: Rows[Chunk]) -> None:
        """Note that the table holds the blocks of chunks now."""
        for row, chunk in enumerate(order):
            self._written[row] = chunk.sequence.blocks, len(chunk.sequence.blocks)
