"""Chooses the next token of many rows at once, each row by its own settings.

Everything up to the tokens is queued on the device for all rows together, without a read in
between; then one copy brings the tokens to the host, while the device may go on with the next step.
"""

from collections.abc import Sequence
from math import inf
from typing import TypeVar

from torch import Tensor

from workers.engines.text.draw import Draw
from workers.engines.text.grammar.mask import masked
from workers.engines.text.logprobs import QueuedLogprobs
from workers.engines.text.penalties import Penalties, PenaltyTable
from workers.engines.text.sample import BROKEN, VOID, Choice, QueuedSample, Sample
from workers.engines.text.sampling_params import SamplingParams, upload
from workers.engines.text.truncation import Truncation, by_candidates

T = TypeVar("T", int, float)

#: Logits to sample from at once on a CPU, so that what is computed stays in its cache.
_CPU_ELEMENTS = 1 << 18


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
        sample = self.queue(logits, rows, positions)
        choices, _ = sample.collect()
        sample.count()
        return choices

    def queue(
        self,
        logits: Tensor,
        rows: Sequence[SamplingParams],
        positions: Sequence[int],
        void: Tensor | None = None,
    ) -> Sample:
        """Queue the choice of one token per row; see ``sample``.

        void: [rows] bool, rows that were computed from no token, whose own is none either
        """
        at_once = max(1, len(rows))
        if logits.device.type == "cpu":
            at_once = max(1, _CPU_ELEMENTS // logits.shape[-1])
        parts = []
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            empty = None if void is None else void[part]
            parts.append(self.enqueue(logits[part], rows[part], positions[part], empty))
        return Sample(parts, self.penalties)

    def release(self, row: SamplingParams) -> None:
        """Forget a request that has ended."""
        self.penalties.release(row)

    def enqueue(
        self,
        logits: Tensor,
        rows: Sequence[SamplingParams],
        positions: Sequence[int],
        void: Tensor | None = None,
    ) -> QueuedSample:
        """Queue the choice of a token per row on the device; reads nothing back."""
        best, tokens = logits.max(dim=-1)  # [rows], [rows]
        broken = ~(best.abs() < inf)  # also where it is not a number
        if all(row.plain for row in rows):
            return QueuedSample(rows, _final(tokens, broken, void))
        random = [index for index, row in enumerate(rows) if not row.greedy]
        penalised = [index for index, row in enumerate(rows) if row.penalised]
        wanted = [index for index, row in enumerate(rows) if row.logprobs is not None]
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
        tokens = _final(tokens, broken, void)
        logprobs, queued = _logprobs(logits, tokens, rows, wanted, sent)
        return QueuedSample(
            rows,
            tokens,
            random,
            draw if groups else None,
            (sent["penalised"], sent["slots"]) if penalised else None,
            wanted,
            logprobs if groups else None,
            queued,
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


def _final(tokens: Tensor, broken: Tensor, void: Tensor | None) -> Tensor:
    """Return the tokens with those taken back of rows that have none."""
    tokens = tokens.masked_fill_(broken, BROKEN)
    return tokens if void is None else tokens.masked_fill_(void, VOID)


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


def _logprobs(
    logits: Tensor,
    tokens: Tensor,
    rows: Sequence[SamplingParams],
    wanted: list[int],
    sent: dict[str, Tensor],
) -> tuple[Tensor | None, QueuedLogprobs | None]:
    """Queue the log-probabilities of the rows that ask for them.

    -> all of these rows, [wanted, vocab], and those that are to be told
    """
    if not wanted:
        return None, None
    counts = [rows[index].logprobs or 0 for index in wanted]
    logprobs = logits.index_select(0, sent["wanted"]).float().log_softmax(dim=-1)
    chosen = tokens.index_select(0, sent["wanted"]).clamp_(min=0)
    return logprobs, QueuedLogprobs.of(logprobs, chosen, counts)
