"""Truncates many rows at once: by top_k, then top_p of what is left, then min_p, then typical_p.

Everything is a threshold on the value, so equal logits share their fate and the outcome does not
depend on how a sort breaks ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engines.text.sampling_params import SamplingParams

_NEVER = float("-inf")
#: How many of the largest logits to look at, instead of a sort of the whole vocabulary: the first
#: is for a small top_k, a nucleus is rarely larger than the second.
_CANDIDATES = (64, 256, 4096)
_NUCLEUS_CANDIDATES = 256


@dataclass(slots=True, frozen=True)
class Truncation:
    """Holds the settings of some rows on the device; None for one that is off for all."""

    top_k: Tensor | None  #: [rows, 1] int64; 0: off
    top_p: Tensor | None  #: [rows, 1] float32; infinite: off
    min_p: Tensor | None  #: [rows, 1] float32; 0: off
    #: the indices of the rows that have typical_p, and its values [of those, 1]; None: none has
    typical: tuple[Tensor, Tensor] | None = None

    def of(self, rows: Tensor) -> "Truncation":
        """Return the settings of the rows with these indices, but typical_p. rows: [some]"""
        top_k, top_p, min_p = (
            None if each is None else each[rows] for each in (self.top_k, self.top_p, self.min_p)
        )
        return Truncation(top_k, top_p, min_p)

    def least(self, scaled: Tensor) -> Tensor:
        """Find the smallest value that min_p leaves in each row. -> [rows, 1]"""
        if self.min_p is None:
            return scaled.new_full((len(scaled), 1), _NEVER)
        # The largest scaled logit is 0, so a probability relative to it is exp(scaled).
        return self.min_p.log()

    def thresholds(self, scaled: Tensor, candidates: int) -> tuple[Tensor, Tensor | None]:
        """Find the smallest value that stays in each row.

        scaled: [rows, vocab], the largest of each row is 0. No top_k may exceed ``candidates``.
        -> thresholds [rows, 1], and whether the row is undecided, [rows, 1] bool: the nucleus is
        larger than the candidates and has to be sought among more of them. None: no row is.
        """
        least = self.least(scaled)
        values, ids = scaled.topk(candidates, dim=-1)
        if self.top_k is not None:
            kth = values.gather(1, (self.top_k - 1).clamp_(min=0))
            kth = kth.masked_fill_(self.top_k == 0, _NEVER)
            least = torch.maximum(least, kth)
            scaled = scaled.masked_fill(scaled < kth, _NEVER)
        if self.top_p is None:
            return least, None
        # A log_softmax sums each row by itself, so that no row depends on those beside it; a
        # logsumexp of one row adds in another order than one of several.
        reached = scaled.log_softmax(dim=-1).gather(1, ids).exp_().cumsum(dim=-1)
        # The first token at which the sum reaches top_p is still in.
        last = (reached < self.top_p).sum(dim=-1, keepdim=True)
        beyond = last == candidates
        nucleus = values.gather(1, last.clamp_(max=candidates - 1)).masked_fill_(beyond, _NEVER)
        least = torch.maximum(least, nucleus)
        if candidates == scaled.shape[-1]:
            return least, None
        return least, beyond & (self.top_p <= 1.0)


def untypical(scaled: Tensor, typical_p: Tensor) -> Tensor:
    """Find the tokens whose surprise is far from the expected one. -> [rows, vocab] bool

    scaled: [rows, vocab], -inf where a token is ruled out already; typical_p: [rows, 1]. The
    nearest ones stay whose probabilities reach typical_p together.
    """
    logs = scaled.log_softmax(dim=-1)
    chances = logs.exp()
    # Sums one after the other, so that no row depends on how many there are.
    entropy = -(chances * logs).nan_to_num_(nan=0.0).double().cumsum(dim=-1)[:, -1:].float()
    distance = (-logs - entropy).abs_()
    nearest, ids = distance.sort(dim=-1)
    reached = chances.gather(1, ids).cumsum(dim=-1)
    last = (reached < typical_p).sum(dim=-1, keepdim=True).clamp_(max=scaled.shape[1] - 1)
    return distance > nearest.gather(1, last)


def by_candidates(rows: Sequence[SamplingParams], vocab: int) -> dict[int, list[int]]:
    """Group the rows (as indices) by how many candidates are looked at.

    Rows that have neither top_k, top_p nor typical_p are in no list. With typical_p the whole
    nucleus must be known.
    """
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        if row.typical_p < 1.0:
            groups.setdefault(vocab, []).append(index)
        elif row.top_k is not None or row.top_p < 1.0:
            least = row.top_k or min(_NUCLEUS_CANDIDATES, vocab)
            count = next(count for count in _counts(vocab) if least <= count)
            groups.setdefault(count, []).append(index)
    return groups


def more_candidates(vocab: int) -> list[int]:
    """Return the numbers of candidates to look at for undecided rows, one after the other."""
    return [count for count in _counts(vocab) if count > _NUCLEUS_CANDIDATES or count == vocab]


def _counts(vocab: int) -> list[int]:
    return [*(count for count in _CANDIDATES if count < vocab), vocab]
