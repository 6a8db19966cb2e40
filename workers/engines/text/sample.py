"""Holds the tokens that a step has chosen, on the device and on their way to the host."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.engines.text.draw import UNDECIDED, Draw
from workers.engines.text.host_copy import HostCopy
from workers.engines.text.logprobs import LEAST_LOGPROB, Logprobs, QueuedLogprobs
from workers.engines.text.penalties import PenaltyTable
from workers.engines.text.sampling_params import SamplingParams, upload

BROKEN = -1  #: the token of a row whose logits are not finite
VOID = -4  #: the token of a row that was computed from no token


@dataclass(slots=True, frozen=True)
class Choice:
    """Holds the token that a row chose; -1 if its logits are not finite, -4 if it had no input."""

    token: int
    logprobs: Logprobs | None = None


@dataclass(slots=True)
class QueuedSample:
    """Holds the choices of some rows, which are queued on the device."""

    rows: Sequence[SamplingParams]
    tokens: Tensor  #: [rows] int64; -1: not finite, -2: the draw is undecided, -4: no input
    random: list[int] = field(default_factory=list)  #: the indices of the rows that are drawn
    draw: Draw | None = None  #: kept where a row may be undecided
    penalised: tuple[Tensor, Tensor] | None = None  #: their indices, and their slots in the table
    wanted: list[int] = field(default_factory=list)  #: those whose logprobs are asked for
    logprobs: Tensor | None = None  #: of these, [rows, vocab], kept where a row may be undecided
    queued: QueuedLogprobs | None = None
    late: list[int] = field(default_factory=list)  #: those that the host has decided, when read
    copy: HostCopy = field(init=False)

    def __post_init__(self) -> None:
        packed = self.tokens
        if self.queued is not None:
            packed = torch.cat((packed.int(), self.queued.packed.view(-1)))
        self.copy = HostCopy(packed)

    def counted(self) -> list[tuple[Tensor, Tensor]]:
        """Return slots of the penalty table and the tokens to count there, if there are any."""
        if self.penalised is None:
            return []
        rows, slots = self.penalised
        return [(slots, self.tokens.index_select(0, rows))]


class Sample:
    """Holds the choices of a step, which are queued on the device in the order of its rows."""

    def __init__(self, parts: list[QueuedSample], penalties: PenaltyTable) -> None:
        self._parts = parts
        self._penalties = penalties
        self._counted = False

    @property
    def tokens(self) -> Tensor:
        """Return the tokens on the device, [rows] int64; negative where there is none yet."""
        if len(self._parts) == 1:
            return self._parts[0].tokens
        return torch.cat([part.tokens for part in self._parts])

    def count(self) -> None:
        """Count the tokens for the penalties of the next step.

        Last of all, when memory cannot run out any more: a step that failed is computed again.
        """
        self._counted = True
        for part in self._parts:
            for slots, tokens in part.counted():
                self._penalties.count(slots, tokens)

    def collect(self, *, decide: bool = True) -> tuple[list[Choice], set[int]]:
        """Wait for the choices; return them, and the rows that were decided by the host.

        What was computed from the tokens of these rows on the device was computed from none.
        Without ``decide`` they stay undecided.
        """
        choices: list[Choice] = []
        late: set[int] = set()
        for part in self._parts:
            start = len(choices)
            choices += collect(part, decide=decide)
            late.update(start + row for row in part.late)
        if self._counted:  # last, as there
            for part in self._parts:
                self._count_late(part)
        return choices, late

    def _count_late(self, part: QueuedSample) -> None:
        """Count tokens that were none when the others were counted."""
        for row in part.late:
            settings = part.rows[row]
            if settings.penalised and (slot := self._penalties.slot(settings)) is not None:
                token = part.tokens[row : row + 1]
                self._penalties.count(torch.full_like(token, slot), token)


def collect(part: QueuedSample, *, decide: bool = True) -> list[Choice]:
    """Wait for the choices of some rows; ``decide`` those whose nucleus is large."""
    tokens = part.tokens
    arrived = part.copy.read()
    chosen: list[int] = arrived[: len(tokens)].tolist()
    found: dict[int, Logprobs] = {}
    if part.queued is not None:
        shape = part.queued.packed.shape
        made = part.queued.unpack(arrived[len(tokens) :].view(shape))
        found = dict(zip(part.wanted, made, strict=True))
    undecided = [index for index, token in enumerate(chosen) if token == UNDECIDED]
    if undecided and decide and part.draw is not None:
        again = part.draw.choose_again([part.random.index(row) for row in undecided])
        for row, token in zip(undecided, again, strict=True):
            chosen[row] = token
            if row in found and part.logprobs is not None:
                place = part.wanted.index(row)
                own = part.logprobs[place, token].clamp(min=LEAST_LOGPROB).item()
                found[row] = Logprobs(own, found[row].top)
        sent = upload(tokens.device, ints={"rows": undecided, "tokens": again})
        tokens.index_copy_(0, sent["rows"], sent["tokens"])
        part.late = undecided
    return [
        Choice(token, found.get(index) if token >= 0 else None)
        for index, token in enumerate(chosen)
    ]
