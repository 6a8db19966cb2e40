"""Keeps the blocks of a step's rows on the device: a step sends those that are not there yet."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workers.engines.text.plan import Chunk
from workers.engines.text.seats import Seats


class RowTable:
    """Holds a table of blocks, padded with block 0, whose rows sequences keep while they run."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        """``width``: blocks of the longest sequence."""
        self.rows, self.width = rows, width
        self._seats = Seats(width)
        self._table = torch.zeros(rows, width, dtype=torch.int32, device=device)

    def arrange(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Return chunks in the order of their rows."""
        return self._seats.arrange(chunks)

    def changes(self, order: Sequence[Chunk]) -> dict[str, list[int]]:
        """Return the numbers that are to be sent for chunks, for ``write``."""
        places, values = self._seats.changes(order)
        return {"places": places, "values": values}

    def write(self, order: Sequence[Chunk], sent: Mapping[str, Tensor]) -> None:
        """Write what has changed; what is queued before reads what was there."""
        if len(sent["places"]):
            self._table.view(-1).index_copy_(0, sent["places"], sent["values"].int())
        self._seats.wrote(order)  # not before: memory may run out on the way

    def part(self, rows: int, blocks: int) -> Tensor:
        """Return the first blocks of the first rows, [rows, blocks] int32; a view."""
        return self._table[:rows, :blocks]
