"""Keeps the keys and values of all running sequences, in blocks of fixed size on the device."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.engines.text import float8
from workers.engines.text.blocks import NULL_BLOCK
from workers.engines.text.sampling_params import upload

_AT_ONCE = 256  #: blocks that are looked at together: a copy of theirs is made


@dataclass(slots=True, frozen=True)
class LayerShape:
    """Counts the numbers that one attention layer keeps per token, and how far back it looks."""

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None  #: None: it sees everything before
    device: torch.device  #: where the layer computes

    @property
    def width(self) -> int:
        """Return how many numbers a token takes: all keys, then all values."""
        return self.kv_heads * (self.key_dim + self.value_dim)


@dataclass(slots=True, frozen=True)
class BlockTable:
    """Lists the blocks of some sequences, padded with block 0 to the same number each."""

    sequences: int
    blocks: Tensor  #: [sequences * blocks]
    contiguous: slice | None  #: the same blocks, if they lie side by side: nothing to gather

    def to(self, device: torch.device) -> "BlockTable":
        return replace(self, blocks=self.blocks.to(device))

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device) -> "BlockTable":
        longest = max(map(len, rows))
        blocks = [b for row in rows for b in (*row, *[NULL_BLOCK] * (longest - len(row)))]
        together = blocks[-1] - blocks[0] == len(blocks) - 1 and blocks == list(
            range(blocks[0], blocks[-1] + 1)
        )
        contiguous = slice(blocks[0], blocks[-1] + 1) if together else None
        return cls(len(rows), upload(device, ints={"blocks": blocks})["blocks"], contiguous)


class PagedCache:
    """Holds a tensor of pages per layer, on the layer's device.

    Its shape is [(blocks + 1) * block_size, width], keys beside values; with a spare block, which
    rows that are not in use write to, one more.

    With ``eight_bits`` it holds float8 numbers (as bytes, which every operation of torch knows),
    and reads give them in the number format of the computation.

    Side by side, one copy writes a token and one gather reads it. Block 0 pads block tables: it
    is never written, so it stays zero, and a masked zero disturbs nothing.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype,
        spare: bool = False,
        eight_bits: bool = False,
    ) -> None:
        self.shapes = tuple(shapes)
        self.dtype = dtype  #: of the computation
        self.eight_bits = eight_bits
        stored = torch.uint8 if eight_bits else dtype
        self.block_size = block_size
        self.spare_slot = (blocks + 1) * block_size  #: of the spare block, if there is one
        count = blocks + 1 + spare
        tokens = count * block_size
        self.pages = [
            torch.zeros(tokens, shape.width, dtype=stored, device=shape.device) for shape in shapes
        ]
        self._by_block = [page.view(count, -1) for page in self.pages]
        devices = {shape.device for shape in shapes}
        #: copies of blocks, out and in, are queued and not waited for
        self.on_card = len(devices) == 1 and devices.pop().type == "cuda"
        self._workspaces: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._shares = True  #: reads use the workspaces
        self.block_bytes = block_bytes(shapes, block_size, dtype, eight_bits=eight_bits)
        #: of a block's numbers: what it holds means the same only where this is the same
        self.layout = repr(
            (stored, block_size, [(s.kv_heads, s.key_dim, s.value_dim) for s in shapes])
        )

    def copy_out(self, blocks: Sequence[int]) -> Tensor:
        """Return what blocks hold, layer after layer; a copy.

        -> [blocks, block_bytes] uint8, on the layers' device, or on the CPU if they have several
        """
        at = self._places(blocks)
        parts = [page.index_select(0, at[page.device]).view(torch.uint8) for page in self._by_block]
        if len({part.device for part in parts}) > 1:
            parts = [part.cpu() for part in parts]
        return torch.cat(parts, dim=1)

    def copy_in(self, blocks: Sequence[int], contents: Tensor) -> None:
        """Write what blocks are to hold; contents: as ``copy_out`` gives it, on any device.

        From pinned memory the copies are queued only; a card is waited for otherwise.
        """
        at = self._places(blocks)
        there = {device: contents.to(device, non_blocking=True) for device in at}
        start = 0
        for page in self._by_block:
            end = start + page.shape[1] * page.element_size()
            rows = there[page.device][:, start:end].view(page.dtype)
            page.index_copy_(0, at[page.device], rows)
            start = end

    def write(self, layer: int, slots: Tensor, rows: Tensor) -> None:
        """Write rows [tokens, width] to slots [tokens] of the cache."""
        kept = float8.narrow(rows) if self.eight_bits else rows
        self.pages[layer].index_copy_(0, slots, kept)

    def as_stored(self, layer: int) -> Tensor:
        """Return a layer's pages for kernels, in the format of their numbers."""
        page = self.pages[layer]
        return page.view(float8.DTYPE) if self.eight_bits else page

    def read(self, layer: int, table: BlockTable) -> tuple[Tensor, Tensor]:
        """Read the blocks of some sequences, in order.

        -> keys [sequences, tokens, kv_heads, key_dim], values [.., value_dim]; views of the
        device's workspace, valid until the next read there, or of the cache itself.
        """
        shape = self.shapes[layer]
        sequences = table.sequences
        if table.contiguous is not None:
            rows = self._by_block[layer][table.contiguous]
        else:
            rows = self._gather(self._by_block[layer], table.blocks)
        if self.eight_bits:
            rows = float8.widen(rows, self._workspace(rows.device, self.dtype, rows.shape))
        rows = rows.view(sequences, -1, shape.width)
        split = shape.kv_heads * shape.key_dim
        heads = (sequences, rows.shape[1], shape.kv_heads)
        keys = rows[..., :split].view(*heads, shape.key_dim)
        values = rows[..., split:].view(*heads, shape.value_dim)
        return keys, values

    def release_workspace(self) -> None:
        """Free the workspaces' memory; the next read takes what it needs."""
        self._workspaces.clear()

    @contextmanager
    def own_copies(self) -> Iterator[None]:
        """Let reads copy to memory of their own, which no other step takes or frees."""
        self._shares = False
        try:
            yield
        finally:
            self._shares = True

    def _gather(self, pages: Tensor, blocks: Tensor) -> Tensor:
        """Copy blocks to a workspace. pages: [all blocks, width] -> [blocks, width]"""
        out = self._workspace(pages.device, pages.dtype, (len(blocks), pages.shape[1]))
        return torch.index_select(pages, 0, blocks, out=out)

    def _workspace(
        self, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> Tensor:
        """Return memory of the device to write to, of that shape.

        All layers share it: their kernels run in order, so one layer's attention has read it
        before the next one writes. It grows by doubling: a copy of its own for each length would
        be a new size every few tokens, which CUDA's allocator keeps, each of them.
        """
        if not self._shares:
            return torch.empty(shape, dtype=dtype, device=device)
        wanted, key = math.prod(shape), (device, dtype)
        workspace = self._workspaces.get(key)
        if workspace is None or workspace.numel() < wanted:
            self._workspaces.pop(key, None)
            del workspace  # before the larger one is made
            workspace = torch.empty(1 << (wanted - 1).bit_length(), dtype=dtype, device=device)
            self._workspaces[key] = workspace
        return workspace[:wanted].view(shape)

    def soil(self, blocks: Sequence[int]) -> None:
        """Fill some blocks with large numbers, as if other texts had left them."""
        at = self._places(blocks)
        for page in self._by_block:
            page.index_fill_(0, at[page.device], float8.EIGHT if self.eight_bits else 8)

    def scrub(self, blocks: Sequence[int]) -> None:
        """Zero some blocks: a NaN that one sequence left would reach the next one's sums."""
        at = self._places(blocks)
        for page in self._by_block:
            page.index_fill_(0, at[page.device], 0)

    def hold_numbers(self, blocks: Sequence[int]) -> bool:
        """Return whether all that some blocks hold are numbers; waits for the devices."""
        broken = []
        for start in range(0, len(blocks), _AT_ONCE):
            at = self._places(blocks[start : start + _AT_ONCE])
            for page in self._by_block:
                held = page.index_select(0, at[page.device])
                broken.append(float8.has_nan(held) if self.eight_bits else ~held.isfinite().all())
        return not any(each.item() for each in broken)

    def _places(self, blocks: Sequence[int]) -> dict[torch.device, Tensor]:
        """Return the numbers of blocks on each device, without a wait for what is queued there."""
        devices = {page.device for page in self.pages}
        return {device: upload(device, ints={"blocks": blocks})["blocks"] for device in devices}


def block_bytes(
    shapes: Sequence[LayerShape], block_size: int, dtype: torch.dtype, *, eight_bits: bool = False
) -> int:
    """Count the bytes of one block over all layers."""
    size = 1 if eight_bits else dtype.itemsize
    return sum(shape.width for shape in shapes) * block_size * size
