"""Computes a plan's logits with the model and its cache. Pure scheduling ends here."""

from collections.abc import Sequence as Rows
from typing import NoReturn

import torch
from torch import Tensor

from workers.engines.base import Refused
from workers.engines.eight_bit_linear import take_over
from workers.engines.text import ragged
from workers.engines.text.batch import BatchBuilder
from workers.engines.text.cache import LayerShape, PagedCache, block_bytes
from workers.engines.text.cache_plan import CachePlan
from workers.engines.text.decoder import Decoder, LibraryDecoder, Unsupported
from workers.engines.text.fused import FusedDecoder, can_fuse
from workers.engines.text.loading import LoadedModel
from workers.engines.text.plan import Chunk, Plan
from workers.engines.text.self_check import SelfCheck
from workers.engines.torch_env import load_failed


class Runner:
    """Computes plans for all rows together. Owns the weights and the paged cache."""

    shares_blocks = True  #: sequences read the same blocks where they begin alike

    def __init__(
        self, loaded: LoadedModel, cache_plan: CachePlan, *, in_place: bool = False
    ) -> None:
        """Set up the cache and check the model.

        ``in_place``: a kernel reads the cache of single tokens where it lies, and one call computes
        all pieces of prompts, where torch has it.

        Raises Refused if it would be computed wrongly; Unsupported, a kind of it, leaves the model
        as it was.
        """
        check = SelfCheck(loaded)
        take_over(loaded.model)
        library = LibraryDecoder(loaded.model)
        try:
            shapes = library.probe()
        except Exception:
            library.close()
            raise
        self.rows = cache_plan.rows
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
            in_place=in_place,
            ragged=in_place and library.plain and ragged.usable(shapes, loaded.dtype),
        )
        same, used = check.passes(self.run, blocks=self.blocks, block_size=cache_plan.block_size)
        self.scrub(used)
        if not same:
            self._refuse(library)

    @property
    def cache(self) -> PagedCache:
        return self._cache

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

    def _refuse(self, library: LibraryDecoder) -> NoReturn:
        if self._decoder is library:
            library.close()
            raise Unsupported("the paged cache does not compute it as its library does")
        raise load_failed("The text engine does not compute this model as its library does.")


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
