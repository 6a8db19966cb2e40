"""Computes a plan's logits with the model and its cache. Pure scheduling ends here."""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from workers.engines import torch_env
from workers.engines.base import Refused
from workers.engines.cuda_graphs import Capture
from workers.engines.eight_bit_linear import take_over
from workers.engines.text import ragged
from workers.engines.text.batch import Batch, BatchBuilder, Carry
from workers.engines.text.cache import LayerShape, PagedCache, block_bytes
from workers.engines.text.cache_plan import CachePlan
from workers.engines.text.decode_graphs import DecodeGraphs, Forward
from workers.engines.text.decoder import Decoder, LibraryDecoder, Unsupported
from workers.engines.text.fused import FusedDecoder, can_fuse
from workers.engines.text.kernels import lengths_of_variants
from workers.engines.text.loading import LoadedModel
from workers.engines.text.lora_layers import LoraHooks
from workers.engines.text.lora_slots import LoraBounds, LoraSlots
from workers.engines.text.plan import Chunk, Plan, Sequence, next_chunk
from workers.engines.text.self_check import Computed, SelfCheck
from workers.engines.torch_env import load_failed

log = logging.getLogger(__name__)


class Runner:
    """Computes plans for all rows together. Owns the weights and the paged cache."""

    shares_blocks = True  #: sequences read the same blocks where they begin alike

    def __init__(
        self,
        loaded: LoadedModel,
        cache_plan: CachePlan,
        *,
        in_place: bool = False,
        capture: Capture | None = None,
        captures_all: bool = False,
        loras: LoraBounds | None = None,
    ) -> None:
        """Set up the cache and check the model.

        ``in_place``: a kernel reads the cache of single tokens where it lies, and one call computes
        all pieces of prompts, where torch has it. ``capture``: steps of
        single tokens are computed as graphs, captured when they are first needed, or
        ``captures_all`` of them now. ``loras``: those that steps may have.

        Raises Refused if it would be computed wrongly; Unsupported, a kind of it, leaves the model
        as it was.
        """
        check = SelfCheck(loaded)
        take_over(loaded.model)
        self.loras = None if loras is None else LoraSlots.of(loaded, loras)
        library, shapes = _probed(loaded)
        self.rows = cache_plan.rows
        self.blocks = _block_count(shapes, cache_plan, loaded.dtype, spare=capture is not None)
        self._decoder, self._forward = self._choose_decoder(loaded, library)
        self._cache = PagedCache(
            shapes,
            self.blocks,
            cache_plan.block_size,
            dtype=loaded.dtype,
            spare=capture is not None,
            eight_bits=cache_plan.eight_bits,
        )
        self._graphs: DecodeGraphs | None = None
        self._builder = BatchBuilder(
            cache_plan.block_size,
            {shape.window for shape in shapes},
            dtype=loaded.dtype,
            device=loaded.device,
            in_place=in_place,
            ragged=in_place
            and library.plain
            and not cache_plan.eight_bits
            and ragged.usable(shapes, loaded.dtype),
        )
        plain = self._compute(check)
        if not check.passes(plain, eight_bits=cache_plan.eight_bits):
            self._refuse(library)
        if in_place:
            self._compile_kernels()
        if capture is not None:
            self._graphs = DecodeGraphs(
                self._forward,
                self._cache,
                rows=min(self.rows, self.blocks),
                context=min(cache_plan.context, self.blocks * cache_plan.block_size),
                device=loaded.device,
                capture=capture,
                in_place=in_place,
                are_near=check.rounding.are_near,  # not the check: it holds logits on the card
                loras=self.loras,
            )
            self._check_graphs(check, plain, captures_all=captures_all)

    def _choose_decoder(
        self, loaded: LoadedModel, library: LibraryDecoder
    ) -> tuple[Decoder, Forward]:
        """Return what computes the layers, fused where the class is known, and a forward pass."""
        loras = self.loras
        if not can_fuse(loaded.model):
            return library, _with_loras(library, None if loras is None else loras.hooks)
        library.close()
        fused = FusedDecoder(loaded.model, loaded.placed)
        fused.loras = None if loras is None else loras.joined
        return fused, _with_loras(fused, None)

    @torch.inference_mode()
    def _compile_kernels(self) -> None:
        """Compile the kernels of all lengths now: each takes about a second, and holds up a step.

        Which one computes a step is chosen by its longest sequence; here that is one of one token.
        """
        one = self._builder.build(Plan([next_chunk(Sequence("", [0], blocks=[1]), 1)], [], [], []))
        assert one.paged is not None
        for longest in lengths_of_variants(self.blocks * self._cache.block_size):
            batch = replace(one, paged=replace(one.paged, longest=longest), elsewhere={})
            self._forward(batch, self._cache)
        self.scrub([1])

    def _compute(self, check: SelfCheck, loras: Rows[int | None] = (None,)) -> Computed:
        """Compute the prompts of the check, in blocks that are clean again afterwards."""
        found = check.compute(
            self.run,
            blocks=self.blocks,
            block_size=self._cache.block_size,
            soil=self._cache.soil,
            loras=loras,
        )
        self.scrub(found.blocks)
        return found

    def _check_graphs(self, check: SelfCheck, plain: Computed, *, captures_all: bool) -> None:
        """Compare steps as graphs with ``plain`` ones; do without them where they differ."""
        graphs = self._graphs
        assert graphs is not None

        def same_with_loras(loras: LoraSlots) -> bool:
            with loras.trial() as slots:
                rows = [slots[0], None, slots[-1]]
                self._graphs = None
                plain = self._compute(check, rows)
                self._graphs = graphs
                with graphs.settled():
                    return check.is_same(self._compute(check, rows), plain) and not graphs.wrong

        def same_without() -> bool:
            return check.is_same(self._compute(check), plain) and not graphs.wrong

        if not self._holds(same_without, "steps"):
            self._graphs = None
            return
        if (loras := self.loras) is not None:
            holds = self._holds(lambda: same_with_loras(loras), "steps with LoRAs")
            self._graphs = graphs
            if not holds:
                graphs.refuse_loras()
        if captures_all:
            graphs.warm_up()

    def _holds(self, compare: Callable[[], bool], what: str) -> bool:
        """Return whether a comparison with graphs comes out well, and memory suffices for it; say
        so if not."""
        try:
            if compare():
                return True
            why = "as graphs they give other logits"
        except Exception as error:  # torch has several for a lack of memory; others are raised
            refused = isinstance(error, Refused) and error.code == "OUT_OF_MEMORY"
            if not refused and not torch_env.is_out_of_memory(error):
                raise
            why = "memory does not suffice to compare the two"
        torch_env.release_cached(self._cache.pages[0].device)
        log.warning("%s are computed without graphs: %s", what, why)
        return False

    @property
    def graphs(self) -> int:
        """Count the graphs that were captured."""
        return 0 if self._graphs is None else self._graphs.captured

    @property
    def cache(self) -> PagedCache:
        return self._cache

    @torch.inference_mode()
    def run(self, plan: Plan) -> tuple[list[Chunk], Tensor]:
        """Compute a plan; returns the chunks that sample, and their logits, [chunks, vocab]."""
        order, logits, _ = self.launch(plan, None)
        return order, logits

    @torch.inference_mode()
    def launch(self, plan: Plan, carry: Carry | None) -> tuple[list[Chunk], Tensor, Tensor | None]:
        """Queue a plan on the device; reads nothing back.

        ``carry`` has the tokens that the step before has promised. Returns what ``run`` does, and
        which of the chunks are computed from no token.
        """
        if self._graphs is not None and (found := self._graphs.run(plan, carry)) is not None:
            return found
        batch = self._builder.build(plan, carry)
        return batch.order, self._forward(batch, self._cache), batch.void

    @torch.inference_mode()
    def scrub(self, blocks: Rows[int]) -> None:
        """Zero the blocks of a broken sequence, before they are freed."""
        if blocks:
            self._cache.scrub(blocks)

    @torch.inference_mode()
    def hold_numbers(self, blocks: Rows[int]) -> bool:
        """Return whether all that blocks hold are numbers; waits for the device.

        Copies of theirs are looked at: where memory does not suffice for these, the answer is no.
        """
        try:
            return self._cache.hold_numbers(blocks)
        except Exception as error:
            if not torch_env.is_out_of_memory(error):
                raise
        return False

    def release_workspace(self) -> None:
        """Free the memory that steps share; the next one takes it again."""
        self._cache.release_workspace()

    def close(self) -> None:
        if self._graphs is not None:
            self._graphs.close()
        if self.loras is not None:
            self.loras.close()
        self._decoder.close()

    def _refuse(self, library: LibraryDecoder) -> NoReturn:
        if self._decoder is library:
            library.close()
            raise Unsupported("the paged cache does not compute it as its library does")
        raise load_failed("The text engine does not compute this model as its library does.")


def _probed(loaded: LoadedModel) -> tuple[LibraryDecoder, list[LayerShape]]:
    """Enter the model's attention; return the shapes of its layers. Raises Unsupported."""
    library = LibraryDecoder(loaded.model)
    try:
        return library, library.probe()
    except Exception:
        library.close()
        raise


def _with_loras(decoder: Decoder, hooks: LoraHooks | None) -> Forward:
    """Return what computes a batch's logits with its LoRAs, in a graph's capture too: it would
    keep those of the step before. ``hooks``: where these add them; None of a decoder that does."""

    def forward(batch: Batch, cache: PagedCache) -> Tensor:
        if hooks is not None:
            hooks.apply(batch.lora)
        return decoder.forward(batch, cache)

    return forward


def _block_count(
    shapes: Rows[LayerShape], plan: CachePlan, dtype: torch.dtype, *, spare: bool
) -> int:
    """Count the blocks that fit into the budget, beside one for padding and a ``spare`` one."""
    each = block_bytes(shapes, plan.block_size, dtype, eight_bits=plan.eight_bits)
    affordable = plan.budget_bytes // each - 1 - spare
    useful = -(-plan.max_tokens // plan.block_size)
    if affordable < 1:
        least = (2 + spare) * each
        raise Refused(
            "MODEL_LOAD_FAILED",
            f"kv_cache_bytes is {plan.budget_bytes}; this model needs at least {least}.",
        )
    return min(affordable, useful)
