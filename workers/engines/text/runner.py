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
from workers.engines.text.scheduler import Chunk, Plan, Scheduler, Sequence
from workers.engines.torch_env import load_failed

#: How far our logits may be from the library's, root mean square, in standard deviations of the
#: latter. Rounding stays well below, also where it sends a token to another expert; a mask or a
#: scale that we do not know of goes beyond.
_TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.5, torch.float16: 0.25}
_CHECK_TOKENS = 12


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
        check = _check_ids(loaded)
        expected = _library_logits(loaded, check)
        if not expected.isfinite().all():
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

    def _self_check(self, ids: list[int], expected: Tensor, tolerance: float) -> None:
        """Compare logits with the library's: of a prompt in two pieces, then of single tokens."""
        allocator = BlockAllocator(self.blocks, self._cache.block_size)
        scheduler = Scheduler(allocator, max_rows=1, step_tokens=len(ids) // 3, watermark=0.0)
        sequence = Sequence("self check", ids[:-2], len(ids) - 2)
        scheduler.add(sequence)
        worst = 0.0
        for token in (*ids[-2:], None):
            while sequence.pending:
                plan = scheduler.schedule()
                _, logits = self.run(plan)
                scheduler.commit(plan)
            wanted = expected[len(sequence.tokens) - 1]
            worst = max(worst, (logits[-1].float() - wanted).square().mean().sqrt().item())
            if token is not None:
                sequence.tokens.append(token)
        self.scrub(sequence.blocks)
        if not worst <= tolerance * expected.std().item():
            raise load_failed("The text engine does not compute this model as its library does.")


def _check_ids(loaded: LoadedModel) -> list[int]:
    count = min(_CHECK_TOKENS, loaded.max_positions)
    return [(17 + 31 * place) % loaded.vocab_size for place in range(count)]


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
