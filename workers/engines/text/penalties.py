"""Applies repetition, presence and frequency penalties to many rows at once.

They depend on the tokens that a request has seen: those stay on the device for as long as the
request runs, in a row of a table for each request that has penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engines.text.sampling_params import SamplingParams, upload


@dataclass(slots=True, frozen=True)
class Penalties:
    """Holds the settings of some rows on the device, [rows, 1] float32; None is off."""

    repetition: Tensor | None
    presence: Tensor | None
    frequency: Tensor | None


class PenaltyTable:
    """Counts the tokens of the requests that have penalties."""

    def __init__(self) -> None:
        self._slots: dict[SamplingParams, int] = {}
        self._free: list[int] = []
        self._counts: Tensor | None = None  # [slots, vocab] float32, of the sampled tokens
        self._seen: Tensor | None = None  # [slots, vocab], of prompt and sampled tokens

    @property
    def used(self) -> int:
        """Return how many requests hold a row."""
        return len(self._slots)

    def slots(self, rows: Sequence[SamplingParams], logits: Tensor) -> list[int]:
        """Return each request's row of the table; a new request gets one, with its prompt."""
        new = [row for row in rows if row not in self._slots]
        if new:
            self._add(new, logits)
        return [self._slots[row] for row in rows]

    def slot(self, row: SamplingParams) -> int | None:
        """Return the row of a request in the table, if it has one."""
        return self._slots.get(row)

    def release(self, row: SamplingParams) -> None:
        """Forget a request; with the last one the table's memory is freed."""
        slot = self._slots.pop(row, None)
        if slot is not None:
            self._free.append(slot)
        if not self._slots:
            self._free.clear()
            self._counts = self._seen = None

    def penalise(self, logits: Tensor, slots: Tensor, by: Penalties) -> Tensor:
        """Penalise logits [rows, vocab], which are not changed; slots: [rows] int64."""
        counts, seen = self._tables()
        if by.repetition is not None:
            weaker = torch.where(logits > 0, logits / by.repetition, logits * by.repetition)
            logits = torch.where(seen.index_select(0, slots), weaker, logits)
        if by.presence is None and by.frequency is None:
            return logits
        said = counts.index_select(0, slots)
        if by.frequency is not None:
            logits = logits - said * by.frequency
        if by.presence is not None:
            logits = logits - said.clamp_(max=1.0).mul_(by.presence)
        return logits

    def count(self, slots: Tensor, tokens: Tensor) -> None:
        """Count a sampled token of each row, none where it is negative; both [rows] int64."""
        counts, seen = self._tables()
        there = tokens >= 0
        places = slots * counts.shape[1] + tokens.clamp(min=0)
        counts.view(-1).index_add_(0, places, there.to(counts.dtype))
        known = seen.view(-1)
        known.index_copy_(0, places, known.index_select(0, places) | there)

    def _tables(self) -> tuple[Tensor, Tensor]:
        if self._counts is None or self._seen is None:
            raise RuntimeError("no request of the penalty table is known")
        return self._counts, self._seen

    def _add(self, new: Sequence[SamplingParams], logits: Tensor) -> None:
        vocab = logits.shape[-1]
        self._reserve(len(self._slots) + len(new), logits)
        counts, seen = self._tables()
        slots = self._free[-len(new) :]
        pairs = [
            (slot, token)
            for slot, row in zip(slots, new, strict=True)
            for token in set(row.prompt)
            if token < vocab  # the head may be smaller than the embedding
        ]
        columns = {
            "slots": slots,
            "prompt_slots": [slot for slot, _ in pairs],
            "prompt_tokens": [token for _, token in pairs],
        }
        sent = upload(logits.device, ints=columns)
        counts.index_fill_(0, sent["slots"], 0.0)
        seen.index_fill_(0, sent["slots"], False)
        places = sent["prompt_slots"] * vocab + sent["prompt_tokens"]
        seen.view(-1).index_fill_(0, places, True)
        del self._free[-len(new) :]
        self._slots.update(zip(new, slots, strict=True))

    def _reserve(self, needed: int, logits: Tensor) -> None:
        """Make room for so many requests: twice as much as before, if the table must grow."""
        old = 0 if self._counts is None else self._counts.shape[0]
        if needed <= old:
            return
        shape = (max(needed, 2 * old), logits.shape[-1])
        counts = torch.zeros(shape, dtype=torch.float32, device=logits.device)
        seen = torch.zeros(shape, dtype=torch.bool, device=logits.device)
        if self._counts is not None and self._seen is not None:
            counts[:old] = self._counts
            seen[:old] = self._seen
        self._counts, self._seen = counts, seen
        self._free += range(old, shape[0])
