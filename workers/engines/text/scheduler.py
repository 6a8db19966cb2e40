"""Plans which tokens of which sequences a step computes. Pure: no torch, no clock.

One token budget per step: first the sequences that wait for one token only (decode), then the
prompts, in pieces that fill what is left. When blocks run out, the youngest sequence loses its
blocks (preemption) and is computed again later from its prompt and its own tokens.
"""

from collections import deque
from dataclasses import dataclass, field

from workers.engines.text.blocks import BlockAllocator


@dataclass(slots=True, eq=False)
class Sequence:
    """Holds the tokens of one request and how far they are in the cache."""

    id: str
    tokens: list[int]  #: the prompt, then every sampled token
    blocks: list[int] = field(default_factory=list)
    computed: int = 0  #: tokens whose keys and values are in ``blocks``
    started: bool = False  #: was part of a plan at least once

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed


@dataclass(slots=True, frozen=True)
class Chunk:
    """Names the piece ``tokens[start:end]`` of a sequence; ``samples`` if a token follows it."""

    sequence: Sequence
    start: int
    end: int
    samples: bool


@dataclass(slots=True, frozen=True)
class Plan:
    """Lists a step's chunks: those of one token first, then pieces of prompts."""

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

    def halves(self) -> "list[Plan]":
        """Split into two plans of half the chunks each.

        Of a single chunk only the first half is planned; the rest stays for a later step. Returns
        nothing for a single token.
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
        half = (chunk.end - chunk.start) // 2
        if not half:
            return []
        first = Chunk(chunk.sequence, chunk.start, chunk.start + half, samples=False)
        return [Plan([], [first], [], [])]


_CAUTIOUS_STEPS = 256  #: steps after which a limit that memory set is tried at twice its size


class Scheduler:
    """Owns the waiting and the running sequences; the blocks belong to the allocator."""

    def __init__(
        self, allocator: BlockAllocator, *, max_rows: int, step_tokens: int, watermark: float = 0.05
    ) -> None:
        """``step_tokens`` limits a step over all rows.

        ``watermark`` is the share of all blocks that stays free when a prompt is admitted beside
        others, so that they can grow for a while.
        """
        self._allocator = allocator
        self._max_rows = min(max_rows, step_tokens)
        self._most_tokens = self._step_tokens = step_tokens
        self._cautious = 0  #: steps until a larger one is tried
        self._watermark = int(allocator.total * watermark)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  #: oldest first

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def step_tokens(self) -> int:
        """Return the tokens that a step may have over all rows."""
        return self._step_tokens

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def set_step(self, tokens: int) -> None:
        """Plan no more than so many tokens a step from now on."""
        self._most_tokens = self._step_tokens = tokens

    def limit_step(self, tokens: int) -> None:
        """Plan no more than so many tokens a step for a while: more did not fit into memory."""
        self._step_tokens = max(1, min(self._step_tokens, tokens))
        self._cautious = _CAUTIOUS_STEPS

    def _recover(self) -> None:
        """Try larger steps again after a while: what took the memory may have gone."""
        if self._step_tokens == self._most_tokens:
            return
        self._cautious -= 1
        if self._cautious <= 0:
            self._step_tokens = min(self._most_tokens, 2 * self._step_tokens)
            self._cautious = _CAUTIOUS_STEPS

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is, and free its blocks."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._free(sequence)

    def schedule(self) -> Plan:
        """Plan a step, and reserve the blocks that it writes to."""
        preempted: list[Sequence] = []
        decodes = self._plan_decodes(preempted)
        budget = self._step_tokens - len(decodes)
        prefills = self._plan_running_prefills(budget)
        if not decodes and not prefills and len(self._running) > 1:
            prefills = self._unblock_oldest(preempted)
        budget -= sum(chunk.end - chunk.start for chunk in prefills)
        if not preempted:
            prefills += self._admit(budget)
        started = [c.sequence for c in prefills if not c.sequence.started]
        for sequence in started:
            sequence.started = True
        return Plan(decodes, prefills, started, preempted)

    def commit(self, plan: Plan) -> None:
        """Note that the plan's tokens are in the cache."""
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.end
        self._recover()

    def _plan_decodes(self, preempted: list[Sequence]) -> list[Chunk]:
        chunks = []
        for sequence in list(self._running):
            if sequence.pending != 1 or not sequence.blocks:
                continue
            if self._make_room(sequence, preempted):
                chunks.append(_chunk(sequence, 1))
        return chunks

    def _make_room(self, sequence: Sequence, preempted: list[Sequence]) -> bool:
        """Reserve the block of the next token; preempt younger sequences if need be."""
        while not self._grow(sequence, 1):
            youngest = self._running[-1]
            self._preempt(youngest)
            preempted.append(youngest)
            if youngest is sequence:
                return False
        return True

    def _plan_running_prefills(self, budget: int) -> list[Chunk]:
        chunks = []
        for sequence in self._running:
            if sequence.pending > 1 or not sequence.blocks:
                chunk = self._prefill(sequence, budget)
                if chunk:
                    budget -= chunk.end - chunk.start
                    chunks.append(chunk)
        return chunks

    def _unblock_oldest(self, preempted: list[Sequence]) -> list[Chunk]:
        """Preempt the youngest sequences until the oldest can go on."""
        oldest = self._running[0]
        while len(self._running) > 1:
            preempted.append(self._running[-1])
            self._preempt(self._running[-1])
            chunk = self._prefill(oldest, self._step_tokens)
            if chunk:
                return [chunk]
        return []

    def _admit(self, budget: int) -> list[Chunk]:
        chunks = []
        while self._waiting and budget > 0 and len(self._running) < self._max_rows:
            sequence = self._waiting[0]
            if not self._fits(sequence):
                break
            self._waiting.popleft()
            self._running.append(sequence)
            chunk = self._prefill(sequence, budget)
            if chunk:
                budget -= chunk.end - chunk.start
                chunks.append(chunk)
        return chunks

    def _fits(self, sequence: Sequence) -> bool:
        """True if all of its tokens fit beside those that the running prompts still need."""
        if not self._running:
            return True
        promised = sum(self._missing_blocks(running) for running in self._running)
        needed = self._missing_blocks(sequence) + promised + self._watermark
        return needed <= self._allocator.free_count

    def _missing_blocks(self, sequence: Sequence) -> int:
        return self._allocator.blocks_for(len(sequence.tokens)) - len(sequence.blocks)

    def _prefill(self, sequence: Sequence, budget: int) -> Chunk | None:
        """Plan as much of the sequence as budget and free blocks allow."""
        held = len(sequence.blocks) + self._allocator.free_count
        room = held * self._allocator.block_size - sequence.computed
        count = min(sequence.pending, budget, room)
        if count < 1 or not self._grow(sequence, count):
            return None
        return _chunk(sequence, count)

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Reserve the blocks of the next ``count`` tokens, if so many are free."""
        wanted = self._allocator.blocks_for(sequence.computed + count) - len(sequence.blocks)
        if wanted > self._allocator.free_count:
            return False
        if wanted > 0:
            sequence.blocks += self._allocator.allocate(wanted)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free(sequence)
        self._waiting.appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        self._allocator.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0


def _chunk(sequence: Sequence, count: int) -> Chunk:
    end = sequence.computed + count
    return Chunk(sequence, sequence.computed, end, samples=end == len(sequence.tokens))
