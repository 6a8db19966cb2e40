"""Drafts tokens of rows, which a step then verifies: those that are right come several at a time.

A row's drafts are computed with its last token in one step. Each place is sampled from as always,
by its own position's noise; the first token that is not the draft ends what is taken. So each text
is the one that it would have been, drawn or not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from workers.engines.text.generation import Generation
from workers.engines.text.lookup import LookupIndex
from workers.engines.text.plan import Chunk, Sequence
from workers.engines.text.sample import BROKEN, Choice
from workers.engines.torch_env import load_failed
from workers.protocol import TextOptions

#: Tokens of a step up to which more of them cost little, over all rows: products of few rows take
#: as long as reading the weights does.
CHEAP_TOKENS = {"cpu": 16, "cuda": 64}

_START = 4.0  #: drafted tokens that a text may have wrong before one was right
_MOST_CREDIT = 24.0
_EACH_TOKEN = 1 / 24  #: that each token of the text adds: so unlucky texts are a percent slower
_EACH_ACCEPTED = 2.0  #: that each draft that was right adds


@dataclass(slots=True)
class _Row:
    """Holds what is known of a text: where its tokens have been, and how well drafts do."""

    index: LookupIndex = field(default_factory=LookupIndex)
    credit: float = _START  #: drafted tokens that may be wrong from now on
    produced: int = 0  #: tokens of the text that have added to it


class Speculation:
    """Drafts tokens of the running rows, and takes account of them."""

    def __init__(self, most: int, step_tokens: int) -> None:
        """``most``: drafts of a row; ``step_tokens``: of a step that has drafts, over all rows."""
        self._most = most
        self._step_tokens = step_tokens
        self._rows: WeakKeyDictionary[Sequence, _Row] = WeakKeyDictionary()

    def draft(self, generations: Iterable[Generation]) -> None:
        """Set the drafts of all rows for the next step; each has its share of the room for them."""
        ready: list[Generation] = []
        for each in generations:
            each.sequence.drafts = []
            if each.produced and each.sequence.blocks and each.sequence.pending == 1:
                ready.append(each)
        room = self._step_tokens - len(ready)
        if room <= 0:
            return
        for each in ready:
            each.sequence.drafts = self._guess(each)
        wanting = sorted(len(each.sequence.drafts) for each in ready if each.sequence.drafts)
        if sum(wanting) > room:
            most = _fair_share(wanting, room)
            for each in ready:
                del each.sequence.drafts[most:]

    def _guess(self, generation: Generation) -> list[int]:
        sampling, sequence = generation.sampling, generation.sequence
        # Penalties and grammars depend on the tokens before, which are not certain yet.
        if sampling.penalised or sampling.constraint is not None:
            return []
        row = self._rows.get(sequence)
        if row is None:
            row = self._rows[sequence] = _Row()
        row.credit += _EACH_TOKEN * (generation.produced - row.produced)
        row.credit = min(row.credit, _MOST_CREDIT)
        row.produced = generation.produced
        most = min(self._most, int(row.credit), generation.left - 1)
        return row.index.guess(sequence.tokens, most) if most > 0 else []

    def account(self, generation: Generation, verified: "Verified") -> None:
        """Note how many drafts of a row were right."""
        drafted, accepted = len(verified.chunk.drafts), verified.accepted
        generation.drafted += drafted
        generation.accepted += accepted
        if (row := self._rows.get(generation.sequence)) is not None:
            row.credit += _EACH_ACCEPTED * accepted - (drafted - accepted)


def _fair_share(wanting: list[int], room: int) -> int:
    """Return the most that each may have, so that all have no more than the room.

    wanting: ascending
    """
    for place, most in enumerate(wanting):
        share = room // (len(wanting) - place)
        if most > share:
            return share
        room -= most
    return wanting[-1]


def of(options: TextOptions, sequential: str | None, device: str) -> Speculation | None:
    """Return what drafts tokens, if the options ask for it.

    ``sequential``: why the model's sequences are computed one by one; None: they are not. Raises
    Refused if the model cannot take tokens back.
    """
    if options.speculation == "off":
        return None
    if sequential is not None:
        raise load_failed(f"text.speculation is lookup, which is not for this model: {sequential}.")
    return Speculation(options.draft_tokens, CHEAP_TOKENS[device])


@dataclass(slots=True, frozen=True)
class Verified:
    """Holds the choices of a chunk up to the first that is not the draft."""

    chunk: Chunk
    choices: list[Choice]
    #: the logits after a draft that was wrong are not finite: what it left in the cache may be none
    broken: bool

    @property
    def accepted(self) -> int:
        return len(self.choices) - 1


def sampled_places(order: Iterable[Chunk]) -> Iterator[tuple[Sequence, int]]:
    """Yield the sequence of each row of a step's logits, and how many drafts are before it."""
    for chunk in order:
        for place in range(1 + len(chunk.drafts)):
            yield chunk.sequence, place


def by_chunk(order: Iterable[Chunk], choices: list[Choice]) -> "Iterator[Verified]":
    """Yield each chunk with those of its choices that hold."""
    start = 0
    for chunk in order:
        chosen = choices[start : start + 1 + len(chunk.drafts)]
        start += len(chosen)
        right = 0
        while right < len(chunk.drafts) and chosen[right].token == chunk.drafts[right]:
            right += 1
        broken = any(each.token == BROKEN for each in chosen[right + 1 :])
        yield Verified(chunk, chosen[: right + 1], broken)
