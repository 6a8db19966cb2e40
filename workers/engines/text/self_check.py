"""Compares what the engine computes of a model with what the library does, before requests come.

On a card several prompts are computed, of one block and of several, in pieces and together: so
padding, masks of later pieces and the kernels of several rows are tried as requests use them.
"""

from collections.abc import Callable
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from workers.engines.numbers import no_numbers
from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.loading import LoadedModel
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.text.scheduler import Scheduler

#: Tokens of each prompt. On a CPU more take seconds with large models, and the ways are the same on
#: all machines.
LENGTHS = {"cpu": (12,), "cuda": (5, 37, 70)}
_SINGLE = 2  #: tokens of each that come one by one, at its end

#: How far our logits may be from the library's, root mean square, in standard deviations of the
#: latter. Rounding stays well below, also where it sends a token to another expert; a mask or a
#: scale that we do not know of goes beyond.
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.5, torch.float16: 0.25}

#: Methods that keep the activations in full precision, and compute in its number format.
_EXACT = (None, "int8", "fp8")

Run = Callable[[Plan], tuple[list[Chunk], Tensor]]


def tolerance(loaded: LoadedModel) -> float:
    """Return how far logits may be from the library's, in standard deviations of the latter."""
    own = TOLERANCE[loaded.dtype]
    return own if loaded.quantization in _EXACT else max(own, TOLERANCE[torch.float16])


class SelfCheck:
    """Holds what a model's library computes of some prompts."""

    def __init__(self, loaded: LoadedModel, lengths: Rows[int] | None = None) -> None:
        """``lengths``: tokens of the prompts. Raises Refused if the library gives no numbers."""
        self._tolerance = tolerance(loaded)
        self._prompts = [
            [(17 + 31 * place + 7 * row) % loaded.vocab_size for place in range(length)]
            for row, length in enumerate(
                min(each, loaded.max_positions) for each in lengths or LENGTHS[loaded.device.type]
            )
        ]
        self._expected = [_library_logits(loaded, ids) for ids in self._prompts]
        if not all(bool(each.isfinite().all()) for each in self._expected):
            raise no_numbers(loaded.dtype)

    def passes(
        self, run: Run, *, blocks: int, block_size: int, eight_bits: bool = False
    ) -> tuple[bool, list[int]]:
        """Tell whether ``run`` computes the same, and which blocks it has written.

        ``eight_bits``: the cache holds such numbers, which round as much as bfloat16 at its worst.
        """
        rows = within(self._prompts, blocks, block_size)
        theirs = self._expected[: len(rows)]
        worst, used = compare(run, rows, theirs, BlockAllocator(blocks, block_size))
        most = max(self._tolerance, TOLERANCE[torch.bfloat16]) if eight_bits else self._tolerance
        allowed = most * torch.cat(list(theirs)).std().item()
        return worst <= allowed, used


@torch.inference_mode()
def _library_logits(loaded: LoadedModel, ids: list[int]) -> Tensor:
    """Compute logits by the model's own attention. -> [tokens, vocab] float32"""
    tokens = torch.tensor([ids], device=loaded.device)
    output = loaded.model(input_ids=tokens, use_cache=False)
    logits: Tensor = output.logits[0].float().to(loaded.device)
    return logits


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


def compare(
    run: Run,
    rows: Rows[list[int]],
    expected: Rows[Tensor],
    allocator: BlockAllocator,
) -> tuple[float, list[int]]:
    """Compute prompts in pieces, then their last tokens one by one, all rows together.

    expected: the library's logits of each prompt, [tokens, vocab]. Returns how far ours are from
    them at most, as the root mean square of a token, NaN if one is none; and the blocks used.
    """
    step = max(len(rows), sum(map(len, rows)) // 3)
    scheduler = Scheduler(allocator, max_rows=len(rows), step_tokens=step, watermark=0.0)
    wanted: dict[str, Tensor] = {}
    sequences: list[Sequence] = []
    for number, (ids, logits) in enumerate(zip(rows, expected, strict=True)):
        prompt = ids[:-_SINGLE] or ids
        sequences.append(Sequence(f"self check {number}", list(prompt)))
        scheduler.add(sequences[-1])
        wanted[sequences[-1].id] = logits
    found: list[Tensor] = []
    while any(sequence.pending for sequence in sequences):
        plan = scheduler.schedule()
        order, logits = run(plan)
        scheduler.commit(plan)
        for chunk, ours in zip(order, logits, strict=True):
            theirs = wanted[chunk.sequence.id][chunk.end - 1]
            found.append((ours.float() - theirs.to(ours.device)).square().mean().sqrt())
        if not any(sequence.pending for sequence in sequences):
            for sequence, ids in zip(sequences, rows, strict=True):
                sequence.tokens += ids[len(sequence.tokens) :][:1]
    worst: float = torch.stack(found).max().item()
    return worst, [block for sequence in sequences for block in sequence.blocks]
