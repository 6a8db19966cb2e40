"""Compares what the engine computes of a model with what the library does, before requests come.

On a card several prompts are computed, of one block and of several, in pieces and together: so
padding, masks of later pieces and the kernels of several rows are tried as requests use them.
"""

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from workers.engines.numbers import no_numbers
from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.loading import LoadedModel
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.text.rounding import Rounding, distances
from workers.engines.text.scheduler import Scheduler

#: Tokens of each prompt. On a CPU more take seconds with large models, and the ways are the same on
#: all machines.
LENGTHS = {"cpu": (12,), "cuda": (5, 37, 70)}
_SINGLE = 2  #: tokens of each that come one by one, at its end
#: The largest window of attention for which a prompt goes beyond it; larger ones take long, and
#: much memory.
WINDOWS = {"cpu": 0, "cuda": 1024}
_LONG = 100  #: tokens, from which on a prompt is long

Run = Callable[[Plan], tuple[list[Chunk], Tensor]]
Soil = Callable[[Rows[int]], None]


@dataclass(slots=True, frozen=True)
class Computed:
    """Holds what an engine has computed of the prompts."""

    rows: dict[tuple[int, int], Tensor]  #: logits [vocab] float32, by prompt and token
    blocks: list[int]  #: those that were written


class SelfCheck:
    """Holds what a model's library computes of some prompts."""

    def __init__(self, loaded: LoadedModel, lengths: Rows[int] | None = None) -> None:
        """``lengths``: tokens of the prompts. Raises Refused if the library gives no numbers."""
        counts = [*lengths] if lengths else [*LENGTHS[loaded.device.type], *_beyond_window(loaded)]
        self._prompts = [
            [(17 + 31 * place + 7 * row) % loaded.vocab_size for place in range(length)]
            for row, length in enumerate(min(each, loaded.max_positions) for each in counts)
        ]
        self._expected = self._of_library(loaded)
        if not all(bool(each.isfinite().all()) for each in self._expected):
            raise no_numbers(loaded.dtype)
        self.rounding = Rounding(loaded, self._expected, lambda: self._of_library(loaded))

    def _of_library(self, loaded: LoadedModel) -> list[Tensor]:
        return [_library_logits(loaded, ids) for ids in self._prompts]

    def compute(
        self,
        run: Run,
        *,
        blocks: int,
        block_size: int,
        soil: Soil | None = None,
        loras: Rows[int | None] = (None,),
    ) -> Computed:
        """Compute the prompts, in pieces and then token by token, all of them together.

        ``soil``: fills blocks with what other texts leave there, so that a look at what is not a
        row's own shows. ``loras``: the slots that the prompts have, in turn.
        """
        rows = within(self._prompts, blocks, block_size)
        used = [*range(1, 1 + sum(-(-len(ids) // block_size) for ids in rows))]
        if soil is not None:
            soil(used)
        found = compute(run, rows, BlockAllocator(blocks, block_size), loras)
        return Computed(found.rows, sorted({*used, *found.blocks}))

    def passes(self, found: Computed, *, eight_bits: bool = False) -> bool:
        """Return whether the model may be served, as ``Rounding.passes`` does."""
        return self.rounding.passes(self._distances(found), eight_bits=eight_bits)

    def is_right(self, found: Computed, *, eight_bits: bool = False) -> bool:
        """Return whether the engine differs from the library by rounding only.

        ``eight_bits``: the cache holds such numbers.
        """
        return self.rounding.allows(self._distances(found), eight_bits=eight_bits)

    def _distances(self, found: Computed) -> Tensor:
        """Return how far each row is from the library's, [rows] float32."""
        off = []
        for (row, place), logits in found.rows.items():
            known = self._expected[row]  # of a long prompt only the last are kept
            at = place - len(self._prompts[row]) + len(known)
            if at >= 0:
                off.append(distances(logits, known[at]))
        return torch.stack(off)

    def is_same(self, found: Computed, plain: Computed) -> bool:
        """Return whether the engine computes in another way what it does in the plain one."""
        return found.rows.keys() == plain.rows.keys() and self.rounding.are_near(
            torch.stack([found.rows[key] for key in plain.rows]),
            torch.stack(list(plain.rows.values())),
        )


@torch.inference_mode()
def _library_logits(loaded: LoadedModel, ids: list[int]) -> Tensor:
    """Compute logits by the model's own attention; of a long prompt those that are compared only.

    -> [tokens, vocab] float32
    """
    tokens = torch.tensor([ids], device=loaded.device)
    some: dict[str, int] = {}
    if len(ids) > _LONG and "logits_to_keep" in signature(loaded.model.forward).parameters:
        some = {"logits_to_keep": _SINGLE + 1}
    output = loaded.model(input_ids=tokens, use_cache=False, **some)
    logits: Tensor = output.logits[0].float().to(loaded.device)
    return logits


def _beyond_window(loaded: LoadedModel) -> list[int]:
    """Return the tokens of a prompt that the model's windowed layers do not see all of, if any."""
    config = loaded.model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or getattr(config, "use_sliding_window", True) is False:
        return []
    device = loaded.device.type
    return [window + 2 * _SINGLE] if max(LENGTHS[device]) <= window <= WINDOWS[device] else []


def within(rows: Rows[list[int]], blocks: int, block_size: int) -> list[list[int]]:
    """Return as many of the prompts as the cache holds together, the last of them cut off."""
    found: list[list[int]] = []
    for ids in rows:
        kept = ids[: blocks * block_size]
        if not kept or (found and len(kept) <= _SINGLE):
            break
        found.append(kept)
        blocks -= -(-len(kept) // block_size)
    return found


def compute(
    run: Run, prompts: Rows[list[int]], allocator: BlockAllocator, loras: Rows[int | None] = (None,)
) -> Computed:
    """Compute prompts in pieces, then their last tokens one by one, all rows together."""
    step = max(len(prompts), sum(map(len, prompts)) // 3)
    scheduler = Scheduler(allocator, max_rows=len(prompts), step_tokens=step, watermark=0.0)
    numbers: dict[Sequence, int] = {}
    for number, ids in enumerate(prompts):
        sequence = Sequence(f"self check {number}", list(ids[:-_SINGLE] or ids))
        sequence.lora = loras[number % len(loras)]
        numbers[sequence] = number
        scheduler.add(sequence)
    found: dict[tuple[int, int], Tensor] = {}
    while any(sequence.pending for sequence in numbers):
        plan = scheduler.schedule()
        order, logits = run(plan)
        scheduler.commit(plan)
        for chunk, ours in zip(order, logits, strict=True):
            # A copy: the next step as a graph writes where this one has written.
            found[numbers[chunk.sequence], chunk.end - 1] = ours.float().clone()
        if not any(sequence.pending for sequence in numbers):
            for sequence, number in numbers.items():
                sequence.tokens += prompts[number][len(sequence.tokens) :][:1]
    return Computed(found, [block for sequence in numbers for block in sequence.blocks])
