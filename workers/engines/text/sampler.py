"""The next token of many rows at once, each row by its own settings.

Noise comes from a counter-based generator keyed by (seed, position, token id) instead of a stream
of numbers, so a row's choice depends on nothing but its own logits and seed, on every device.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.protocol import Sampling

_NEVER = float("-inf")
#: Tried first instead of a sort of the whole vocabulary; a nucleus is rarely larger.
_CANDIDATES = (256, 4096)


class RowSampler:
    """The settings of one request, in the form that a step needs them."""

    def __init__(self, sampling: Sampling, seed: int, prompt: Sequence[int], vocab: int) -> None:
        self.temperature = sampling.temperature
        self.top_k = sampling.top_k if sampling.top_k and sampling.top_k < vocab else None
        self.top_p = sampling.top_p
        self.min_p = sampling.min_p
        self.repetition = sampling.repetition_penalty
        self.presence = sampling.presence_penalty
        self.frequency = sampling.frequency_penalty
        self.bias = sampling.logit_bias
        self.logprobs = sampling.logprobs
        self.greedy = sampling.temperature == 0.0
        self.penalised = (self.repetition, self.presence, self.frequency) != (1.0, 0.0, 0.0)
        #: Only the arg max is needed: no copy of the logits, no work per row.
        self.plain = self.greedy and not self.penalised and not self.bias and self.logprobs is None
        self._seed = seed
        self._prompt = prompt
        self._counts: Tensor | None = None  # [vocab], of the sampled tokens
        self._seen: Tensor | None = None  # [vocab], of prompt and sampled tokens

    def keys(self, position: int) -> tuple[int, int]:
        """Two signed 32-bit numbers that are this row's own at this position."""
        data = f"{self._seed}:{position}".encode()
        digest = hashlib.blake2b(data, digest_size=8).digest()
        first, second = digest[:4], digest[4:]
        return (
            int.from_bytes(first, "little", signed=True),
            int.from_bytes(second, "little", signed=True),
        )

    def note(self, token: int) -> None:
        """Count a sampled token, for the penalties."""
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True

    def adjust_(self, logits: Tensor) -> None:
        """Apply bias and penalties in place. logits: [vocab], float32."""
        if self.penalised:
            self._penalise_(logits)
        if self.bias:
            ids = torch.tensor(list(self.bias), device=logits.device)
            values = torch.tensor(list(self.bias.values()), device=logits.device)
            logits.index_add_(0, ids, values.to(logits.dtype))

    def _penalise_(self, logits: Tensor) -> None:
        if self._counts is None or self._seen is None:
            self._counts = torch.zeros_like(logits)
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
            self._seen[torch.tensor(self._prompt, device=logits.device)] = True
        if self.repetition != 1.0:
            weaker = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
            logits.copy_(torch.where(self._seen, weaker, logits))
        logits.sub_(self._counts, alpha=self.frequency)
        logits.sub_(self._counts.clamp(max=1.0), alpha=self.presence)


@dataclass(slots=True, frozen=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before any setting."""

    chosen: float
    top: list[tuple[int, float]]  #: (token, logprob), best first


@dataclass(slots=True, frozen=True)
class Choice:
    token: int
    logprobs: Logprobs | None = None


def sample(logits: Tensor, rows: Sequence[RowSampler], positions: Sequence[int]) -> list[Choice]:
    """Choose one token per row. logits: [rows, vocab]; positions: tokens sampled before.

    A row whose logits are not finite gives token -1: its model has failed, not its neighbours'.
    """
    best, tokens = logits.max(dim=-1)  # [rows], [rows]
    broken = ~torch.isfinite(best)
    if all(row.plain for row in rows):
        return [Choice(token) for token in tokens.masked_fill_(broken, -1).tolist()]
    adjusted = logits.float()
    if adjusted is logits:
        adjusted = logits.clone()
    for index, row in enumerate(rows):
        row.adjust_(adjusted[index])
    tokens = adjusted.argmax(dim=-1)
    random = [index for index, row in enumerate(rows) if not row.greedy]
    if random:
        drawn = _draw(adjusted[random], [rows[i] for i in random], [positions[i] for i in random])
        tokens[random] = drawn
    chosen: list[int] = tokens.masked_fill_(broken, -1).tolist()
    for row, token in zip(rows, chosen, strict=True):
        row.note(token)
    return [
        Choice(token, _logprobs(logits[index], token, row.logprobs))
        for index, (row, token) in enumerate(zip(rows, chosen, strict=True))
    ]


def _logprobs(logits: Tensor, token: int, count: int | None) -> Logprobs | None:
    """logits: [vocab], as the model gave them."""
    if count is None or token < 0:
        return None
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values, ids = logprobs.topk(min(count, logprobs.shape[-1]))
    return Logprobs(logprobs[token].item(), list(zip(ids.tolist(), values.tolist(), strict=True)))


def _draw(logits: Tensor, rows: Sequence[RowSampler], positions: Sequence[int]) -> Tensor:
    """A token per row by the Gumbel trick: the arg max of scaled logits plus noise. -> [rows]"""
    scale = _column([row.temperature for row in rows], logits)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / scale
    _truncate_(scaled, rows)
    keys = torch.tensor([row.keys(p) for row, p in zip(rows, positions, strict=True)])
    keys = keys.to(logits.device, torch.int32)
    return scaled.add_(_gumbel(keys, logits.shape[-1])).argmax(dim=-1)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)  # [rows, 1]


def _truncate_(scaled: Tensor, rows: Sequence[RowSampler]) -> None:
    """Rule tokens out by top_k, then top_p of what is left, then min_p; in place.

    Everything is a threshold on the value, so equal logits share their fate and the outcome does
    not depend on how a sort breaks ties. scaled: [rows, vocab], the largest of each row is 0.
    """
    for index, row in enumerate(rows):
        threshold = _threshold(scaled[index], row)
        if threshold is not None:
            scaled[index].masked_fill_(scaled[index] < threshold, _NEVER)


def _threshold(scaled: Tensor, row: RowSampler) -> Tensor | None:
    """The smallest value that stays, as a 0-dimensional tensor; None if all do."""
    threshold = None
    if row.top_k is not None:
        threshold = scaled.topk(row.top_k).values[-1]
    if row.top_p < 1.0:
        threshold = _nucleus(scaled, threshold, row.top_p)
    if row.min_p > 0.0:
        # The largest scaled logit is 0, so a probability relative to it is exp(scaled).
        least = torch.tensor(row.min_p, dtype=scaled.dtype, device=scaled.device).log()
        threshold = least if threshold is None else torch.maximum(threshold, least)
    return threshold


def _nucleus(scaled: Tensor, threshold: Tensor | None, top_p: float) -> Tensor:
    """The value of the last token of the smallest set whose probability reaches ``top_p``."""
    kept = scaled if threshold is None else scaled.masked_fill(scaled < threshold, _NEVER)
    log_total = kept.logsumexp(dim=-1)
    for count in (*_CANDIDATES, kept.shape[-1]):
        values = kept.topk(min(count, kept.shape[-1])).values
        reached = (values - log_total).exp().cumsum(dim=-1)
        if reached[-1] >= top_p:
            break
    # The first token at which the sum reaches top_p is still in.
    last = torch.searchsorted(reached, top_p).clamp_(max=values.shape[-1] - 1)
    return values[last]


def _gumbel(keys: Tensor, vocab: int) -> Tensor:
    """Gumbel noise. keys: [rows, 2] int32 -> [rows, vocab] float32.

    The hash is MurmurHash3's finaliser over the token ids, twice; int32 products wrap.
    """
    ids = torch.arange(vocab, dtype=torch.int32, device=keys.device)
    mixed = _mix_(ids * -1640531527 + keys[:, :1])  # [rows, vocab]
    mixed = _mix_(mixed ^ keys[:, 1:])
    # 23 bits and a half fit float32 exactly, so the value is never 0 nor 1.
    uniform = (mixed & 0x7FFFFF).float().add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def _mix_(bits: Tensor) -> Tensor:
    bits ^= (bits >> 16) & 0xFFFF
    bits *= -2048144789
    bits ^= (bits >> 13) & 0x7FFFF
    bits *= -1028477387
    bits ^= (bits >> 16) & 0xFFFF
    return bits
