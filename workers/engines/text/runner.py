"""Computes a plan's logits with the model and its cache. Pure scheduling ends here."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engines.base import Refused
from workers.engines.numbers import no_numbers
from workers.engines.text.batch import BatchBuilder
from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.cache import LayerShape, PagedCache, block_bytes
from workers.engines.text.decoder import Decoder, LibraryDecoder
from workers.engines.text.fused import FusedDecoder, can_fuse
from workers.engines.text.loading import LoadedModel
from workers.engines.text.plan import Chunk, Plan
from workers.engines.text.self_check import compare, prompts, within
from workers.engines.torch_env import load_failed

#: How far our logits may be from the library's, root mean square, in standard deviations of the
#: latter. Rounding stays well below, also where it sends a token to another expert; a mask or a
#: scale that we do not know of goes beyond.
_TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.5, torch.float16: 0.25}


@dataclass(slots=True, frozen=True)
class CachePlan:
    """Limits the KV cache."""

    budget_bytes: int
    block_size: int
    max_tokens: int  #: all rows at their longest


class Runner:
    """Computes plans. Owns the weights and the cache."""

    def __init__(self, loaded: LoadedModel, cache_plan: CachePlan) -> None:
        """Set up the cache and check the model. Raises Refused if it would be computed wrongly."""
        self._vocab = loaded.vocab_size
        check = prompts(
            loaded.device.type, longest=loaded.max_positions, vocab_size=loaded.vocab_size
        )
        expected = [_library_logits(loaded, ids) for ids in check]
        if not all(bool(each.isfinite().all()) for each in expected):
            raise no_numbers(loaded.dtype)
        library = LibraryDecoder(loaded.model)
        shapes = library.probe()
        self.blocks = _block_count(shapes, cache_plan, loaded.dtype)
        self._decoder: Decoder = library
        if can_fuse(loaded.model) and not loaded.spread:
            library.close()
            self._decoder = FusedDecoder(loaded.model)
        self._cache = PagedCache(shapes, self.blocks, cache_plan.block_size, dtype=loaded.dtype)
        self._builder = BatchBuilder(
            cache_plan.block_size,
            {shape.window for shape in shapes},
            dtype=loaded.dtype,
            device=loaded.device,
        )
        self._self_check(check, expected, _TOLERANCE[loaded.dtype])

    @torch.inference_mode()
    def run(self, plan: Plan) -> tuple[list[Chunk], Tensor]:
        """Compute a plan; returns the chunks that sample, and their logits, [chunks, vocab]."""
        batch = self._builder.build(plan)
        logits = self._decoder.forward(batch, self._cache)
        return batch.order, logits

    @torch.inference_mode()
    def scrub(self, blocks: Rows[int]) -> None:
        """Zero the blocks of a broken sequence, before they are freed."""
        if blocks:
            self._cache.scrub(blocks)

    def release_workspace(self) -> None:
        """Free the memory that steps share; the next one takes it again."""
        self._cache.release_workspace()

    def close(self) -> None:
        self._decoder.close()

    def _self_check(self, rows: Rows[list[int]], expected: Rows[Tensor], tolerance: float) -> None:
        """Compare logits with the library's. Raises Refused if they are too far apart."""
        rows = within(rows, self.blocks, self._cache.block_size)
        theirs = expected[: len(rows)]
        allocator = BlockAllocator(self.blocks, self._cache.block_size)
        worst, used = compare(self.run, rows, theirs, allocator)
        self.scrub(used)
        if not worst <= tolerance * torch.cat(list(theirs)).std().item():
            raise load_failed("The text engine does not compute this model as its library does.")


@torch.inference_mode()
def _library_logits(loaded: LoadedModel, ids: list[int]) -> Tensor:
    """Compute logits by the model's own attention. -> [tokens, vocab] float32"""
    tokens = torch.tensor([ids], device=loaded.device)
    output = loaded.model(input_ids=tokens, use_cache=False)
    logits: Tensor = output.logits[0].float().to(loaded.device)
    return logits


def _block_count(shapes: Rows[LayerShape], plan: CachePlan, dtype: torch.dtype) -> int:
    """Count the blocks that fit into the budget, beside one for padding."""
    each = block_bytes(shapes, plan.block_size, dtype)
    affordable = plan.budget_bytes // each - 1
    useful = -(-plan.max_tokens // plan.block_size)
    if affordable < 1:
        raise Refused(
            "MODEL_LOAD_FAILED",
            f"kv_cache_bytes is {plan.budget_bytes}; this model needs at least {2 * each}.",
        )
    return min(affordable, useful)
