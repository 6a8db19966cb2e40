"""Computes steps of single tokens as CUDA graphs: one launch each, in place of hundreds.

A graph has fixed shapes and reads the same memory at each replay. So the rows of a step lie in
tensors that are made once, filled up to the next size in a bounded set with rows that disturb
nothing; what differs from the step before is written into them, and then the graph of that size is
replayed. All that it computes depends on these tensors only.

Steps with LoRAs have graphs of their own, for all slots that there are: which of them a row has is
a number like its token. They hold for as long as the LoRAs' matrices lie where they lay.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from workers.engines.text.lora_layers import NO_SLOT
from workers.engines.text.lora_slots import LoraSlots
from workers.engines.text.plan import Chunk, Plan
from workers.engines.text.row_table import RowTable
from workers.engines.text.sampling_params import upload

log = logging.getLogger(__name__)

_MOST_GRAPHS = 64  #: each takes some megabytes of the card
_REST = 256  #: steps for which a size is computed without a graph if there was no memory for one
_SETTLED = 64  #: steps with LoRAs of one layout after which graphs are captured for it
_SHORTEST = 256  #: tokens
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48)  #: and then multiples of 32

Forward = Callable[[Batch, PagedCache], Tensor]

Size = tuple[int, int, bool]  #: rows, tokens of the longest sequence, and whether there are LoRAs


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
        are_near: Callable[[Tensor, Tensor], bool],
        loras: LoraSlots | None = None,
    ) -> None:
        """``context``: tokens of the longest sequence; ``in_place``: a kernel reads the cache;
        ``are_near``: tells whether logits [rows, vocab] differ by rounding only; ``loras``: those
        that rows may have."""
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
        #: tokens, positions, slots, lengths, LoRAs; a row not in use writes to the spare block
        self._numbers = torch.zeros(5, self._row_sizes[-1], dtype=torch.long, device=device)
        self._idle = (0, 0, cache.spare_slot, 1, NO_SLOT)
        self._loras = loras
        self._layout = 0  #: of the LoRAs that graphs are captured with
        self._settled = 0  #: steps with LoRAs since it changed
        self._are_near = are_near
        self._captured: dict[Size, Replay] = {}
        self._untried: set[Size] = set()  #: captured, and not compared with a step yet
        self._wrong: set[Size] = set()  #: those whose replays gave other logits
        self._rests: dict[Size, int] = {}  #: steps, by the sizes that rest
        self._fails = False

    @property
    def sizes(self) -> list[Size]:
        """Return the sizes of graphs without LoRAs, as many as there may be beside those with."""
        most = _MOST_GRAPHS if self._loras is None else _MOST_GRAPHS // 2
        rows = self._row_sizes[::-1]
        return [(each, length, False) for length in self._lengths for each in rows][:most]

    @property
    def captured(self) -> int:
        """Count the graphs that there are."""
        return len(self._captured)

    @property
    def wrong(self) -> bool:
        """Return whether a graph has given other logits than its step."""
        return bool(self._wrong)

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
        with_loras = any(chunk.sequence.lora is not None for chunk in chunks)
        if with_loras and (self._loras is None or not self._are_settled(self._loras)):
            return None
        longest = max(chunk.end for chunk in chunks)
        if len(chunks) > self._row_sizes[-1] or longest > self._lengths[-1]:
            return None
        rows, length = at_least(self._row_sizes, len(chunks)), at_least(self._lengths, longest)
        size = rows, length, with_loras
        if not self._has_replay(size):
            return None
        if size not in self._captured:
            # With other numbers than the step's: those that stay in the graph then show.
            self._fill([], rows, None)
        replay = self._replay_of(size)
        if replay is None:
            return None
        order = self._table.arrange(chunks)
        void = self._fill(order, rows, carry)
        logits = replay()[: len(order)]
        if size in self._untried:
            logits = self._tried(size, logits)
        return order, logits, void

    def _tried(self, size: Size, logits: Tensor) -> Tensor:
        """Compare a graph's first logits with those of the same step without it, and return those
        that are right. A graph that gives others is not used again."""
        try:
            plain = self._step(*size)[: len(logits)]
            is_right = self._are_near(logits, plain)
        except Exception as error:  # torch has several for a lack of memory; raised again
            if torch_env.is_out_of_memory(error):  # the step is computed again, without a graph
                self._let_go([size])
                self._rests[size] = _REST
            raise
        self._untried.discard(size)
        if is_right:
            return logits
        self._let_go([size])
        self._wrong.add(size)
        log.warning("a graph gives other logits than its step: steps of %s have none", _named(size))
        return plain

    def refuse_loras(self) -> None:
        """Compute steps with LoRAs without graphs from now on."""
        self._loras = None

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Let steps with the LoRAs that there are be graphs at once, and forget these after."""
        assert self._loras is not None
        self._layout, self._settled = self._loras.layout, _SETTLED
        try:
            yield
        finally:
            self._forget_loras()

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
                NO_SLOT if chunk.sequence.lora is None else chunk.sequence.lora,
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
        self._numbers[:, :rows].copy_(sent["numbers"].view(5, rows))
        self._table.write(order, sent)
        return None if carry is None else fill_in(self._numbers[0], carry, sent, len(order))

    def _are_settled(self, loras: LoraSlots) -> bool:
        """Return whether steps with LoRAs may be graphs: not while their matrices come and go.

        Each time that these lie elsewhere, all such graphs are of no use any more.
        """
        if loras.layout != self._layout:
            self._layout, self._settled = loras.layout, 0
            self._forget_loras()
        self._settled += 1
        return self._settled > _SETTLED

    def _forget_loras(self) -> None:
        """Let go of the graphs of steps with LoRAs."""
        self._let_go([size for size in self._captured if size[2]])
        self._wrong = {size for size in self._wrong if not size[2]}

    def _let_go(self, sizes: Sequence[Size]) -> None:
        if sizes and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # one of theirs may be computed yet
        for size in sizes:
            del self._captured[size]
            self._untried.discard(size)

    def _step(self, rows: int, length: int, with_loras: bool) -> Tensor:
        """Compute the tensors' first rows; their logits are [rows, vocab]."""
        ids, positions, slots, lengths, loras = self._numbers[:, :rows].unbind()
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
        lora = self._loras.any_of(loras) if with_loras and self._loras is not None else None
        batch = Batch(ids, positions, slots, groups, [], None, [], paged, lora=lora)
        with self._cache.own_copies():  # what steps share may be freed, a graph's is its own
            return self._forward(batch, self._cache)

    def _has_replay(self, size: Size) -> bool:
        """Return whether a size has a replay, or may be captured.

        The driver is seldom asked for its free memory: each time takes longer than to queue a step.
        """
        if size in self._captured:
            return True
        if self._fails or size in self._wrong or len(self._captured) >= _MOST_GRAPHS:
            return False
        rest = self._rests.get(size, 0)
        if not rest and has_room(self._device):
            return True
        self._rests[size] = (rest or _REST) - 1
        return False

    def _replay_of(self, size: Size) -> Replay | None:
        """Return the replay of a size, captured if need be; None if that fails."""
        if size not in self._captured:
            try:
                self._captured[size] = self._capture(partial(self._step, *size))
                self._untried.add(size)
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


def _named(size: Size) -> str:
    rows, length, with_loras = size
    return f"{rows} rows and {length} tokens" + (" with LoRAs" if with_loras else "")


def row_sizes(most: int) -> list[int]:
    """Return the numbers of rows that graphs have, up to one that holds the most."""
    found = [each for each in _ROWS if each < most]
    found += range(64, most, 32)
    return [*found, most]


def length_sizes(context: int) -> list[int]:
    """Return the lengths that graphs have, in tokens, up to the longest."""
    doubled: Iterable[int] = (_SHORTEST << power for power in range(context.bit_length()))
    return [*(each for each in doubled if each < context), context]
