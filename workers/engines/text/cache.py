"""Keeps the keys and values of all running sequences, in blocks of fixed size on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.engines.text.blocks import NULL_BLOCK


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
        return cls(len(rows), torch.tensor(blocks, device=device), contiguous)


class PagedCache:
    """Holds a tensor of pages per layer, on the layer's device.

    Its shape is [(blocks + 1) * block_size, width], keys beside values.

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
    ) -> None:
        self.shapes = tuple(shapes)
        self.block_size = block_size
        tokens = (blocks + 1) * block_size
        self.pages = [
            torch.zeros(tokens, shape.width, dtype=dtype, device=shape.device) for shape in shapes
        ]
        self._by_block = [page.view(blocks + 1, -1) for page in self.pages]
        self._workspaces: dict[torch.device, Tensor] = {}
        self.block_bytes = block_bytes(shapes, block_size, dtype)
        #: of a block's numbers: what it holds means the same only where this is the same
        self.layout = repr(
            (dtype, block_size, [(s.kv_heads, s.key_dim, s.value_dim) for s in shapes])
        )

    def copy_out(self, blocks: Sequence[int]) -> Tensor:
        """Return what blocks hold, layer after layer; a copy.

        -> [blocks, block_bytes] uint8, on the layers' device, or on the CPU if they have several
        """
        index = torch.tensor(blocks)
        parts = [
            page.index_select(0, index.to(page.device)).view(torch.uint8) for page in self._by_block
        ]
        if len({part.device for part in parts}) > 1:
            parts = [part.cpu() for part in parts]
        return torch.cat(parts, dim=1)

    def copy_in(self, blocks: Sequence[int], contents: Tensor) -> None:
        """Write what blocks are to hold; contents: as ``copy_out`` gives it, on any device."""
        index = torch.tensor(blocks)
        start = 0
        for page in self._by_block:
            end = start + page.shape[1] * page.element_size()
            rows = contents[:, start:end].to(page.device).view(page.dtype)
            page.index_copy_(0, index.to(page.device), rows)
            start = end

    def write(self, layer: int, slots: Tensor, rows: Tensor) -> None:
        """Write rows [tokens, width] to slots [tokens] of the cache."""
        self.pages[layer].index_copy_(0, slots, rows)

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
        rows = rows.view(sequences, -1, shape.width)
        split = shape.kv_heads * shape.key_dim
        heads = (sequences, rows.shape[1], shape.kv_heads)
        keys = rows[..., :split].view(*heads, shape.key_dim)
        values = rows[..., split:].view(*heads, shape.value_dim)
        return keys, values

    def release_workspace(self) -> None:
        """Free the workspaces' memory; the next read takes what it needs."""
        self._workspaces.clear()

    def _gather(self, pages: Tensor, blocks: Tensor) -> Tensor:
        """Copy blocks to the device's workspace. pages: [all blocks, width] -> [blocks, width]

        All layers share it: their kernels run in order, so one layer's attention has read it
        before the next one writes. It grows by doubling: a copy of its own for each length would
        be a new size every few tokens, which CUDA's allocator keeps, each of them.
        """
        wanted = len(blocks) * pages.shape[1]
        workspace = self._workspaces.get(pages.device)
        if workspace is None or workspace.numel() < wanted:
            self._workspaces.pop(pages.device, None)
            del workspace  # before the larger one is made
            workspace = pages.new_empty(1 << (wanted - 1).bit_length())
            self._workspaces[pages.device] = workspace
        rows = workspace[:wanted].view(len(blocks), -1)
        return torch.index_select(pages, 0, blocks, out=rows)

    def scrub(self, blocks: Sequence[int]) -> None:
        """Zero some blocks: a NaN that one sequence left would reach the next one's sums."""
        index = torch.tensor(blocks)
        for page in self._by_block:
            page.index_fill_(0, index.to(page.device), 0)


def block_bytes(shapes: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
    """Count the bytes of one block over all layers."""
    return sum(shape.width for shape in shapes) * block_size * dtype.itemsize
