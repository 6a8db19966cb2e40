"""Describes a step: the sequences, the pieces of them that it computes, and the plan. Pure."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from workers.engines.text.prefix_keys import PrefixKeys


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """Holds the tokens of one text of a job and how far they are in the cache."""

    id: str  #: of the job
    tokens: list[int]  #: the prompt, then every sampled token
    prompt_length: int = field(init=False)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0  #: tokens whose keys and values are in ``blocks``
    promised: int = 0  #: tokens after ``tokens`` that a step in flight is choosing
    most: int | None = None  #: tokens that it may have in all; None: no limit is known
    started: bool = False  #: was part of a plan at least once
    paused: bool = False  #: no token can be chosen for it for a while
    scores: bool = False  #: the logits at the prompt's tokens are wanted, too
    #: the running sequences of the same prompt, oldest first; None: there is no other
    holders: "list[Sequence] | None" = None
    keys: PrefixKeys | None = None  #: of its blocks; None: it shares none with other jobs
    published: int = 0  #: blocks that are found by their keys
    drafts: list[int] = field(default_factory=list)  #: tokens that may follow, to be verified
    cached: int = 0  #: tokens of the prompt that were there when it began
    sound: bool = False  #: a token was chosen from what its blocks hold: these are numbers
    inputs: Mapping[str, Any] | None = None  #: what the model reads beside its tokens
    lora: int | None = None  #: the slot of the LoRA that it is computed with; None: of none
    priority: int = 0  #: where blocks lack, those of the lowest lose theirs first
    passed: int = 0  #: how often one of a higher priority was admitted before it

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def length(self) -> int:
        """Count its tokens, with those that are not known yet."""
        return len(self.tokens) + self.promised

    @property
    def pending(self) -> int:
        return self.length - self.computed

    @property
    def held_up(self) -> bool:
        """Return whether no token can be computed for it for a while.

        Its mask is late, or the token that it waits for is its last.
        """
        if self.paused:
            return True
        return bool(self.promised) and self.most is not None and self.length >= self.most


@dataclass(slots=True, frozen=True)
class Chunk:
    """Names the piece ``tokens[start:end]`` of a sequence; ``samples`` if a token follows it.

    The last tokens of the piece may be drafts: then a token is sampled after each of them, and
    after the one before.
    """

    sequence: Sequence
    start: int
    end: int
    samples: bool
    drafts: tuple[int, ...] = ()

    @property
    def known(self) -> int:
        """Return where the piece ends without its drafts."""
        return self.end - len(self.drafts)

    @property
    def tokens(self) -> list[int]:
        return [*self.sequence.tokens[self.start : self.known], *self.drafts]

    @property
    def scored(self) -> int:
        """Count the tokens whose logits are wanted beside the last: each tells the next one's."""
        if not self.sequence.scores:
            return 0
        return max(0, min(self.end, self.sequence.prompt_length - 1) - self.start)


@dataclass(slots=True, frozen=True)
class Plan:
    """Lists a step's chunks: those of one token, and its drafts, first; then prompts' pieces."""

    decodes: list[Chunk]
    prefills: list[Chunk]
    started: list[Sequence]  #: those that are in a plan for the first time
    preempted: list[Sequence]  #: those that lost their blocks to make room

    @property
    def chunks(self) -> list[Chunk]:
        return self.decodes + self.prefills

    @property
    def tokens(self) -> int:
        return sum(chunk.end - chunk.start for chunk in self.chunks)

    def of(self, sequences: Container[Sequence]) -> "Plan":
        """Return what it plans of these sequences."""
        decodes = [chunk for chunk in self.decodes if chunk.sequence in sequences]
        return Plan(decodes, [c for c in self.prefills if c.sequence in sequences], [], [])

    def halves(self) -> "list[Plan]":
        """Split into two plans of half the chunks each.

        Of a single chunk only the first half is planned, or what are no drafts; the rest stays for
        a later step. Returns nothing for a single token.
        """
        if len(self.chunks) > 1:
            middle = len(self.chunks) // 2
            decodes, prefills = self.decodes, self.prefills
            left = max(0, middle - len(decodes))
            return [
                Plan(decodes[:middle], prefills[:left], [], []),
                Plan(decodes[middle:], prefills[left:], [], []),
            ]
        chunk = self.chunks[0]
        if chunk.drafts:
            return [Plan([replace(chunk, end=chunk.known, drafts=())], [], [], [])]
        half = (chunk.end - chunk.start) // 2
        if not half:
            return []
        first = Chunk(chunk.sequence, chunk.start, chunk.start + half, samples=False)
        return [Plan([], [first], [], [])]


def next_chunk(sequence: Sequence, count: int) -> Chunk:
    """Return the piece of so many tokens that is to be computed next."""
    end = sequence.computed + count
    return Chunk(sequence, sequence.computed, end, samples=end == sequence.length)
