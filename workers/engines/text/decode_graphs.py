"""Computes steps of single tokens as CUDA graphs: one launch each, in place of hundreds.

A graph has fixed shapes and reads the same memory at each replay. So the rows of a step lie in
tensors that are made once, filled up to the next size in a bounded set with rows that disturb
nothing; what differs from the step before is written into them, and then the graph of that size is
replayed. All that it computes depends on these tensors only.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from workers.engines import torch_env
from workers.engines.cuda_graphs import Capture, Replay, at_least, has_room
from workers.engines.text.batch import (
    Batch,
    Carry,
    DecodeGroup,
    PagedRows,
    fill_in,
    mask_of,
    promised_rows,
)
from workers.engines.text.cache import BlockTable, PagedCache
from workers.engines.text.plan import Chunk, Plan
from workers.engines.text.row_table import RowTable
from workers.engines.text.sampling_params import upload

log = logging.getLogger(__name__)

_MOST_GRAPHS = 64  #: each takes some megabytes of the card
_REST = 256  #: steps for which a size is computed without a graph if there was no memory for one
_SHORTEST = 256  #: tokens
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48)  #: and then multiples of 32

Forward = Callable[[Batch, PagedCache], Tensor]


class DecodeGraphs:
    """Holds the tensors that steps of single tokens read, and the graphs that read them."""

    def __init__(
        self,
        forward: Forward,
        cache: PagedCache,
        *,
        rows: int,
        context: int,
        device: torch.device,
        capture: Capture,
        in_place: bool,
    ) -> None:
        """``context``: tokens of the longest sequence; ``in_place``: a kernel reads the cache."""
        self._forward = forward
        self._cache = cache
        self._device = device
        self._capture = capture
        self._in_place = in_place
        self._windows = {shape.window for shape in cache.shapes}
        self._row_sizes = row_sizes(rows)
        self._lengths = length_sizes(context)
        width = -(-self._lengths[-1] // cache.block_size) + 1  # drafts may take one more
        self._table = RowTable(self._row_sizes[-1], width, device)
        #: tokens, positions, slots, lengths; a row that is not in use writes to the spare block
        self._numbers = torch.zeros(4, self._row_sizes[-1], dtype=torch.long, device=device)
        self._idle = (0, 0, cache.spare_slot, 1)
        self._captured: dict[tuple[int, int], Replay] = {}
        self._rests: dict[tuple[int, int], int] = {}  #: steps, by the sizes that rest
        self._fails = False

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Return the sizes of graphs: rows, and tokens of the longest, as many as there may be."""
        every = [(rows, length) for length in self._lengths for rows in reversed(self._row_sizes)]
        return every[:_MOST_GRAPHS]

    @property
    def captured(self) -> int:
        """Count the graphs that there are."""
        return len(self._captured)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture the graphs of all sizes, as far as the card has room for them."""
        for size in self.sizes:
            self._fill([], size[0], None)
            if not self._has_replay(size) or self._replay_of(size) is None:
                return

    def run(
        self, plan: Plan, carry: Carry | None
    ) -> tuple[list[Chunk], Tensor, Tensor | None] | None:
        """Queue a plan; returns what ``Runner.launch`` does, or None if no graph computes it.

        The logits are overwritten by the next run.
        """
        chunks = plan.decodes
        if not chunks or plan.prefills or any(chunk.drafts for chunk in chunks):
            return None
        if any(chunk.sequence.lora is not None for chunk in chunks):
            return None
        longest = max(chunk.end for chunk in chunks)
        if len(chunks) > self._row_sizes[-1] or longest > self._lengths[-1]:
            return None
        size = at_least(self._row_sizes, len(chunks)), at_least(self._lengths, longest)
        if not self._has_replay(size):
            return None
        order = self._table.arrange(chunks)
        void = self._fill(order, size[0], carry)
        replay = self._replay_of(size)
        return None if replay is None else (order, replay()[: len(order)], void)

    def close(self) -> None:
        self._captured.clear()

    def _fill(self, order: list[Chunk], rows: int, carry: Carry | None) -> Tensor | None:
        """Write a step's numbers into the tensors; returns which rows have no token."""
        size = self._cache.block_size
        columns = [
            (
                *(chunk.tokens or [0]),  # or only the device knows it yet
                chunk.start,
                chunk.sequence.blocks[chunk.start // size] * size + chunk.start % size,
                chunk.end,
            )
            for chunk in order
        ]
        columns += [self._idle] * (rows - len(order))
        sent = upload(
            self._device,
            ints={
                "numbers": [number for numbers in zip(*columns, strict=True) for number in numbers],
                **self._table.changes(order),
                **promised_rows(order, carry),
            },
        )
        self._numbers[:, :rows].copy_(sent["numbers"].view(4, rows))
        self._table.write(order, sent)
        return None if carry is None else fill_in(self._numbers[0], carry, sent, len(order))

    def _step(self, rows: int, length: int) -> Tensor:
        """Compute the tensors' first rows; their logits are [rows, vocab]."""
        ids, positions, slots, lengths = self._numbers[:, :rows].unbind()
        blocks = -(-length // self._cache.block_size)
        table = self._table.part(rows, blocks)
        paged, groups = None, []
        if self._in_place:
            paged = PagedRows(rows, table, lengths.int(), length)
        else:
            places = positions.view(-1, 1, 1, 1)
            keys = torch.arange(blocks * self._cache.block_size, device=self._device)
            groups.append(
                DecodeGroup(
                    0,
                    rows,
                    BlockTable(rows, table.reshape(-1), None),
                    {
                        window: mask_of(places, keys, window, self._cache.dtype)
                        for window in self._windows
                    },
                )
            )
        batch = Batch(ids, positions, slots, groups, [], None, [], paged)
        with self._cache.own_copies():  # what steps share may be freed, a graph's is its own
            return self._forward(batch, self._cache)

    def _has_replay(self, size: tuple[int, int]) -> bool:
        """Return whether a size has a replay, or may be captured.

        The driver is seldom asked for its free memory: each time takes longer than to queue a step.
        """
        if size in self._captured:
            return True
        if self._fails or len(self._captured) >= _MOST_GRAPHS:
            return False
        rest = self._rests.get(size, 0)
        if not rest and has_room(self._device):
            return True
        self._rests[size] = (rest or _REST) - 1
        return False

    def _replay_of(self, size: tuple[int, int]) -> Replay | None:
        """Return the replay of a size, captured if need be; None if that fails."""
        if size not in self._captured:
            try:
                self._captured[size] = self._capture(partial(self._step, *size))
            except Exception as error:  # noqa: BLE001  a library's forward may do anything
                if torch_env.is_out_of_memory(error):
                    self._rests[size] = _REST  # another size may fit, or this one later
                else:
                    self._fails = True
                    log.warning("steps are computed without graphs from now on: %s", error)
            if size not in self._captured:  # the error has let go of what the step had computed
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)  # raises if the context is lost
                torch_env.release_cached(self._device)  # and this if torch's is
                return None
        return self._captured[size]


def row_sizes(most: int) -> list[int]:
    """Return the numbers of rows that graphs have, up to one that holds the most."""
    found = [each for each in _ROWS if each < most]
    found += range(64, most, 32)
    return [*found, most]


def length_sizes(context: int) -> list[int]:
    """Return the lengths that graphs have, in tokens, up to the longest."""
    doubled: Iterable[int] = (_SHORTEST << power for power in range(context.bit_length()))
    return [*(each for each in doubled if each < context), context]
