"""Chooses the next token of many rows at once, each row by its own settings.

Everything up to the tokens is queued on the device for all rows together, without a read in
between; then one read brings the tokens to the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

import torch
from torch import Tensor

from workers.engines.text.draw import UNDECIDED, Draw
from workers.engines.text.grammar.mask import masked
from workers.engines.text.penalties import Penalties, PenaltyTable
from workers.engines.text.sampling_params import SamplingParams, upload
from workers.engines.text.truncation import Truncation, by_candidates

T = TypeVar("T", int, float)

BROKEN = -1  #: the token of a row whose logits are not finite
#: Logits to sample from at once on a CPU, so that what is computed stays in its cache.
_CPU_ELEMENTS = 1 << 18
#: Alternatives that are computed at least, so that ties do not depend on other rows.
_TOP_LOGPROBS = 20
_LEAST_LOGPROB = -9999.0  #: of tokens that a model rules out: infinity is no number in JSON


@dataclass(slots=True, frozen=True)
class Logprobs:
    """Holds natural logarithms of the model's own probabilities, before any setting."""

    chosen: float
    top: list[tuple[int, float]]  #: (token, logprob), best first


@dataclass(slots=True, frozen=True)
class Choice:
    """Holds the token that a row chose; -1 if its logits are not finite."""

    token: int
    logprobs: Logprobs | None = None


@dataclass(slots=True, frozen=True)
class PendingSample:
    """Holds a step's choices, which are queued on the device."""

    rows: Sequence[SamplingParams]
    logits: Tensor  #: [rows, vocab], as the model gave them
    tokens: Tensor  #: [rows] int64; -1: the logits are not finite, -2: the draw is undecided
    random: list[int]  #: the indices of the rows that are drawn
    draw: Draw | None
    penalised: tuple[Tensor, Tensor] | None  #: their indices and their slots in the table
    wanted: Tensor | None  #: the indices of the rows whose logprobs are asked for

    def counted(self) -> list[tuple[Tensor, Tensor]]:
        """Return slots of the penalty table and the tokens to count there, if there are any."""
        if self.penalised is None:
            return []
        rows, slots = self.penalised
        # A broken row ends with this step; what is counted for it does not matter.
        return [(slots, self.tokens.index_select(0, rows).clamp_(min=0))]


class Sampler:
    """Chooses tokens. Holds the tokens of running requests that have penalties."""

    def __init__(self) -> None:
        self.penalties = PenaltyTable()

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingParams], positions: Sequence[int]
    ) -> list[Choice]:
        """Choose one token per row. logits: [rows, vocab]; positions: tokens sampled before.

        A row whose logits are not finite gives token -1: its model has failed, not its neighbours'.
        """
        at_once = len(rows)
        if logits.device.type == "cpu":
            at_once = max(1, _CPU_ELEMENTS // logits.shape[-1])
        choices: list[Choice] = []
        counted: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            pending = self.enqueue(logits[part], rows[part], positions[part])
            choices += collect(pending)
            counted += pending.counted()
        # Last, when memory cannot run out any more: a step that failed is computed again.
        for slots, tokens in counted:
            self.penalties.count(slots, tokens)
        return choices

    def release(self, row: SamplingParams) -> None:
        """Forget a request that has ended."""
        self.penalties.release(row)

    def enqueue(
        self, logits: Tensor, rows: Sequence[SamplingParams], positions: Sequence[int]
    ) -> PendingSample:
        """Queue the choice of a token per row on the device; reads nothing back."""
        best, tokens = logits.max(dim=-1)  # [rows], [rows]
        broken = ~(best.abs() < inf)  # also where it is not a number
        if all(row.plain for row in rows):
            tokens.masked_fill_(broken, BROKEN)
            return PendingSample(rows, logits, tokens, [], None, None, None)
        random = [index for index, row in enumerate(rows) if not row.greedy]
        penalised = [index for index, row in enumerate(rows) if row.penalised]
        slots = self.penalties.slots([rows[index] for index in penalised], logits)
        groups = by_candidates([rows[index] for index in random], logits.shape[-1])
        sent = _send(logits, rows, positions, random, penalised, slots, groups)
        adjusted = self._adjust(logits, rows, sent)
        if len(random) < len(rows):
            tokens = adjusted.argmax(dim=-1)
        draw = None
        if random:
            draw = _draw(_pick(adjusted, sent["random"]), sent)
            drawn = draw.choose(
                {
                    count: None if len(members) == len(random) else sent[str(count)]
                    for count, members in groups.items()
                }
            )
            if len(random) < len(rows):
                tokens.index_copy_(0, sent["random"], drawn)
            else:
                tokens = drawn
        return PendingSample(
            rows,
            logits,
            tokens.masked_fill(broken, BROKEN),
            random,
            draw,
            (sent["penalised"], sent["slots"]) if penalised else None,
            sent["wanted"] if len(sent["wanted"]) else None,
        )

    def _adjust(
        self, logits: Tensor, rows: Sequence[SamplingParams], sent: dict[str, Tensor]
    ) -> Tensor:
        """Apply penalties and biases; rule out early ends, and what no grammar lets follow.

        -> [rows, vocab] float32
        """
        adjusted = logits.float()
        picked = sent["penalised"]
        if len(picked):
            some = self.penalties.penalise(_pick(adjusted, picked), sent["slots"], _penalties(sent))
            adjusted = some if len(picked) == len(rows) else adjusted.index_copy(0, picked, some)
        if len(sent["bias"]):
            places = sent["bias_rows"] * adjusted.shape[1] + sent["bias_tokens"]
            adjusted = adjusted.reshape(-1).index_add(0, places, sent["bias"]).view_as(adjusted)
        if "barred" in sent:
            places = sent["barred_rows"] * adjusted.shape[1] + sent["barred"]
            adjusted = adjusted.reshape(-1).index_fill(0, places, -inf).view_as(adjusted)
        return _constrained(adjusted, rows)


def _constrained(logits: Tensor, rows: Sequence[SamplingParams]) -> Tensor:
    """Rule out what grammars do not let follow, where rows have them. -> [rows, vocab]"""
    held = [(index, row.constraint) for index, row in enumerate(rows) if row.constraint is not None]
    if not held:
        return logits
    return masked(logits, [index for index, _ in held], [each.words for _, each in held])


def collect(pending: PendingSample) -> list[Choice]:
    """Wait for the choices, and decide rows whose nucleus is large."""
    tokens = pending.tokens
    chosen: list[int] = tokens.tolist()
    undecided = [index for index, token in enumerate(chosen) if token == UNDECIDED]
    if undecided and pending.draw is not None:
        again = pending.draw.choose_again([pending.random.index(row) for row in undecided])
        for row, token in zip(undecided, again, strict=True):
            chosen[row] = token
        sent = upload(tokens.device, ints={"rows": undecided, "tokens": again})
        tokens.index_copy_(0, sent["rows"], sent["tokens"])
    found = _logprobs(pending)
    return [
        Choice(token, found.get(index) if token >= 0 else None)
        for index, token in enumerate(chosen)
    ]


def _send(
    logits: Tensor,
    rows: Sequence[SamplingParams],
    positions: Sequence[int],
    random: list[int],
    penalised: list[int],
    slots: list[int],
    groups: dict[int, list[int]],
) -> dict[str, Tensor]:
    """Send all settings of a step to the device at once.

    ``groups`` are sent by their number of candidates; ``keys`` has two numbers for each row.
    """
    drawn = [rows[index] for index in random]
    weakened = [rows[index] for index in penalised]
    biased = [(index, row.bias) for index, row in enumerate(rows) if row.bias]
    rare, typical_p = _send_rarely(rows, positions, drawn)
    return upload(
        logits.device,
        floats={
            "temperature": [row.temperature for row in drawn],
            "top_p": _unless([row.top_p if row.top_p < 1.0 else inf for row in drawn], inf),
            "min_p": _unless([row.min_p for row in drawn], 0.0),
            "repetition": _unless([row.repetition for row in weakened], 1.0),
            "presence": _unless([row.presence for row in weakened], 0.0),
            "frequency": _unless([row.frequency for row in weakened], 0.0),
            "bias": [value for _, bias in biased for value in bias.values()],
            **typical_p,
        },
        ints={
            "random": random,
            "keys": [key for index in random for key in rows[index].keys(positions[index])],
            "top_k": _unless([row.top_k or 0 for row in drawn], 0),
            "penalised": penalised,
            "slots": slots,
            "bias_rows": [index for index, bias in biased for _ in bias],
            "bias_tokens": [token for _, bias in biased for token in bias],
            **rare,
            "wanted": [index for index, row in enumerate(rows) if row.logprobs is not None],
            **{str(count): members for count, members in groups.items()},
        },
    )


def _send_rarely(
    rows: Sequence[SamplingParams], positions: Sequence[int], drawn: Sequence[SamplingParams]
) -> tuple[dict[str, list[int]], dict[str, list[float]]]:
    """Return the columns of settings that few requests have; nothing where none has them."""
    ints: dict[str, list[int]] = {}
    floats: dict[str, list[float]] = {}
    typical = [index for index, row in enumerate(drawn) if row.typical_p < 1.0]
    if typical:
        ints["typical"] = typical
        floats["typical_p"] = [drawn[index].typical_p for index in typical]
    barring = [i for i, row in enumerate(rows) if row.barred and positions[i] < row.min_tokens]
    if barring:
        ints["barred_rows"] = [index for index in barring for _ in rows[index].barred]
        ints["barred"] = [token for index in barring for token in rows[index].barred]
    return ints, floats


def _unless(values: list[T], off: T) -> list[T]:
    """Return the values, or none if the setting is off for all."""
    return [] if all(value == off for value in values) else values


def _pick(logits: Tensor, rows: Tensor) -> Tensor:
    """Return some rows of the logits; the logits themselves, if these are all."""
    return logits if len(rows) == len(logits) else logits.index_select(0, rows)


def _draw(logits: Tensor, sent: dict[str, Tensor]) -> Draw:
    """Set up the draw of logits [rows that are drawn, vocab]."""
    typical = (sent["typical"], sent["typical_p"].unsqueeze(1)) if "typical" in sent else None
    top_k, top_p, min_p = _columns(sent, "top_k", "top_p", "min_p")
    truncation = Truncation(top_k, top_p, min_p, typical)
    return Draw.of(logits, sent["temperature"], sent["keys"].view(-1, 2), truncation)


def _penalties(sent: dict[str, Tensor]) -> Penalties:
    return Penalties(*_columns(sent, "repetition", "presence", "frequency"))


def _columns(sent: dict[str, Tensor], *names: str) -> list[Tensor | None]:
    """Return settings as [rows, 1]; None for one that is off for all rows."""
    return [sent[name].unsqueeze(1) if len(sent[name]) else None for name in names]


def _logprobs(pending: PendingSample) -> dict[int, Logprobs]:
    """Return log-probabilities by the index of the row, for rows that ask for them."""
    if pending.wanted is None:
        return {}
    tokens = pending.tokens.index_select(0, pending.wanted).clamp_(min=0)
    counts = {i: row.logprobs for i, row in enumerate(pending.rows) if row.logprobs is not None}
    found = logprobs_of(pending.logits.index_select(0, pending.wanted), tokens, [*counts.values()])
    return dict(zip(counts, found, strict=True))


def logprobs_of(logits: Tensor, tokens: Tensor, counts: Sequence[int]) -> list[Logprobs]:
    """Return the log-probability of a token of each row, beside those of its best ones.

    logits: [rows, vocab]; tokens: [rows] int64; counts: of alternatives, for each row.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    most = min(max(_TOP_LOGPROBS, *counts), logprobs.shape[1])
    values, ids = logprobs.topk(most, dim=-1)
    values = values.clamp_(min=_LEAST_LOGPROB)
    chosen = logprobs.gather(1, tokens.unsqueeze(1)).clamp_(min=_LEAST_LOGPROB)
    found = torch.cat((chosen.view(torch.int32), values.view(torch.int32), ids.int()), 1).cpu()
    numbers = found[:, : most + 1].contiguous().view(torch.float32).tolist()
    names = found[:, most + 1 :].tolist()
    return [
        Logprobs(own, list(zip(name[:count], top[:count], strict=True)))
        for count, (own, *top), name in zip(counts, numbers, names, strict=True)
    ]
