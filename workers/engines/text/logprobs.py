"""Finds the log-probabilities of tokens, beside those of a row's best ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engines.text.host_copy import HostCopy

#: Alternatives that are computed at least, so that ties do not depend on other rows.
_TOP_LOGPROBS = 20
LEAST_LOGPROB = -9999.0  #: of tokens that a model rules out: infinity is no number in JSON


@dataclass(slots=True, frozen=True)
class Logprobs:
    """Holds natural logarithms of the model's own probabilities, before any setting."""

    chosen: float
    top: list[tuple[int, float]]  #: (token, logprob), best first


@dataclass(slots=True, frozen=True)
class QueuedLogprobs:
    """Holds the log-probabilities of some rows, which are queued on the device."""

    counts: Sequence[int]  #: of alternatives, for each row
    most: int  #: alternatives that are computed
    packed: Tensor  #: [rows, 1 + 2 * most] int32: the chosen one, the best ones, their tokens

    @classmethod
    def of(cls, logprobs: Tensor, tokens: Tensor, counts: Sequence[int]) -> "QueuedLogprobs":
        """Queue them; logprobs: [rows, vocab] float32, tokens: [rows] int64."""
        most = min(max(_TOP_LOGPROBS, *counts), logprobs.shape[1])
        values, ids = logprobs.topk(most, dim=-1)
        values = values.clamp_(min=LEAST_LOGPROB)
        chosen = logprobs.gather(1, tokens.unsqueeze(1)).clamp_(min=LEAST_LOGPROB)
        packed = torch.cat((chosen.view(torch.int32), values.view(torch.int32), ids.int()), 1)
        return cls(counts, most, packed)

    def unpack(self, found: Tensor) -> list[Logprobs]:
        """Return them, given ``packed`` on the host."""
        numbers = found[:, : self.most + 1].contiguous().view(torch.float32).tolist()
        names = found[:, self.most + 1 :].tolist()
        return [
            Logprobs(own, list(zip(name[:count], top[:count], strict=True)))
            for count, (own, *top), name in zip(self.counts, numbers, names, strict=True)
        ]


class PromptLogprobs:
    """Holds the log-probabilities of a prompt's tokens, which are on their way to the host."""

    def __init__(self, logits: Tensor, tokens: Tensor, count: int) -> None:
        """logits: [tokens, vocab]; tokens: [tokens] int64; ``count``: of alternatives"""
        logprobs = logits.float().log_softmax(dim=-1)
        self._queued = QueuedLogprobs.of(logprobs, tokens, [count] * len(tokens))
        self._copy = HostCopy(self._queued.packed)

    def read(self) -> list[Logprobs]:
        """Return them, once they have arrived."""
        return self._queued.unpack(self._copy.read())
