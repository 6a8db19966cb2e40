"""Plans which tokens of which sequences a step computes. Pure: no torch, no clock.

One token budget per step: first the sequences that wait for one token only (decode), then tokens
that are drafted for them, then the prompts, in pieces that fill what is left. When blocks run out,
the sequence of the lowest priority loses its blocks (preemption), the youngest of these, and is
computed again later from its prompt and its own tokens.

A job may have several sequences. Each job has a row before another has its second one: if rows or
blocks lack for that, the youngest sequence of the job that has most rows is preempted. Sequences of
one prompt share its full blocks: the first computes them while the others wait. Those of different
jobs share the blocks of what they have in common at their beginning, if their keys are equal.

A step may be planned before the tokens of the one before are known: these are promised then.
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from workers.engines.text.admission import may_pass, next_to_admit
from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.plan import Chunk, Plan, Sequence, next_chunk
from workers.engines.text.step_limit import StepLimit

#: Prompts' tokens of a step whose logits are wanted: they are as wide as the vocabulary, each.
_SCORED_TOKENS = 256


class MustLand(Exception):
    """A sequence has to lose its blocks, while a step is in flight that writes to them."""


class Scheduler:
    """Owns the waiting and the running sequences; the blocks belong to the allocator."""

    def __init__(
        self,
        allocator: BlockAllocator,
        *,
        max_rows: int,
        step_tokens: int,
        watermark: float = 0.05,
        inspect: Callable[[list[int]], None] = lambda _blocks: None,
    ) -> None:
        """``step_tokens`` limits a step over all rows.

        ``watermark`` is the share of all blocks that stays free when a prompt is admitted beside
        others, so that they can grow for a while. ``inspect`` is given the blocks of a sequence
        that are about to be freed before any token has shown that they hold numbers.
        """
        self._allocator = allocator
        self._inspect = inspect
        self._max_rows = min(max_rows, step_tokens)
        self._limit = StepLimit(step_tokens)
        self._watermark = int(allocator.total * watermark)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  #: of the highest priority first, then oldest
        self._rows: Counter[str] = Counter()  #: of the running sequences, by their job
        self._scored_left = 0  #: tokens that this step may still score
        self._in_flight = False  #: the step before the one that is being planned has not landed

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def step_tokens(self) -> int:
        """Return the tokens that a step may have over all rows."""
        return self._limit.tokens

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def set_step(self, tokens: int) -> None:
        """Plan no more than so many tokens a step from now on."""
        self._limit.set(tokens)

    def limit_step(self, tokens: int) -> None:
        """Plan no more than so many tokens a step for a while: more did not fit into memory."""
        self._limit.lower(tokens)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is, and free its blocks."""
        self.free(sequence, self.withdraw(sequence))

    def free(self, sequence: Sequence, blocks: list[int]) -> None:
        """Free the blocks of a sequence that was withdrawn, once no step writes to them."""
        if blocks and not sequence.sound:
            self._inspect(blocks)
        self._allocator.release(reversed(blocks))  # a text's end is of less use than its start

    def withdraw(self, sequence: Sequence) -> list[int]:
        """Forget a sequence wherever it is; return its blocks, which stay in use."""
        if sequence in self._running:
            return self._leave(sequence)
        self._waiting.remove(sequence)
        return []

    def schedule(self, *, in_flight: bool = False) -> Plan:
        """Plan a step, and reserve the blocks that it writes to.

        Raises MustLand if a sequence has to lose its blocks while the step before is ``in_flight``;
        once that has landed, a step can be planned.
        """
        self._in_flight = in_flight
        self._scored_left = _SCORED_TOKENS
        preempted = self._make_way()
        made_way = len(preempted)
        decodes = self._plan_decodes(preempted)
        self._add_drafts(decodes)
        budget = self._limit.tokens - sum(chunk.end - chunk.start for chunk in decodes)
        prefills = self._plan_running_prefills(budget)
        stuck = not decodes and not prefills and len(self._running) > 1
        if stuck and not any(sequence.held_up for sequence in self._running):
            prefills = self._unblock_first(preempted)
        budget -= sum(chunk.end - chunk.start for chunk in prefills)
        if len(preempted) == made_way:
            prefills += self._admit(budget)
        started = [c.sequence for c in prefills if not c.sequence.started]
        for sequence in started:
            sequence.started = True
        return Plan(decodes, prefills, started, preempted)

    def commit(self, plan: Plan) -> None:
        """Note that the plan's tokens are in the cache."""
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.known
            self._publish(chunk.sequence, chunk.known)
        self._limit.recover()

    def launched(self, plan: Plan) -> None:
        """Note that the plan's tokens are being computed, and each sequence's next one chosen."""
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.known
            chunk.sequence.promised += chunk.samples
        self._limit.recover()

    def landed(self, chunk: Chunk) -> None:
        """Note that the token after a chunk is known, if it has one; it is to be added now.

        Only now may others find its blocks: what it has written is known to be sound.
        """
        chunk.sequence.promised -= chunk.samples
        self._publish(chunk.sequence, chunk.known)

    def retract(self, sequence: Sequence) -> None:
        """Compute a sequence's last token once more: what follows was computed from another."""
        sequence.computed = len(sequence.tokens) - 1
        sequence.promised = 0

    def accept(self, sequence: Sequence, drafts: int, *, again: bool = False) -> None:
        """Note that the first drafts of a chunk that has landed are tokens of the sequence now.

        ``again``: the sequence is to be computed from its beginning.
        """
        sequence.computed += drafts
        if again:
            self._preempt(sequence)
        else:
            self._publish(sequence, sequence.computed)

    def postpone(self, sequence: Sequence) -> None:
        """Compute a sequence's last token again, once it is no longer paused."""
        sequence.computed = len(sequence.tokens) - 1
        sequence.paused = True

    def _plan_decodes(self, preempted: list[Sequence]) -> list[Chunk]:
        chunks = []
        for sequence in list(self._running):
            if sequence.pending != 1 or not sequence.blocks or sequence.held_up:
                continue
            if self._make_room(sequence, preempted):
                chunks.append(next_chunk(sequence, 1))
        return chunks

    def _add_drafts(self, decodes: list[Chunk]) -> None:
        """Add their drafts to rows, as far as the step has room and blocks are free to spare."""
        room = self._limit.tokens - len(decodes)
        for place, chunk in enumerate(decodes):
            sequence = chunk.sequence
            spare = max(0, self._allocator.free_count - self._watermark) + len(sequence.blocks)
            room_there = spare * self._allocator.block_size - chunk.end
            count = min(len(sequence.drafts), room, room_there)
            if count > 0 and self._grow(sequence, 1 + count):
                drafts = tuple(sequence.drafts[:count])
                decodes[place] = replace(chunk, end=chunk.end + count, drafts=drafts)
                room -= count

    def _make_room(self, sequence: Sequence, preempted: list[Sequence]) -> bool:
        """Reserve the block of the next token; preempt those that come later if need be."""
        while not self._grow(sequence, 1):
            place = self._running.index(sequence)  # those before it are in the plan
            lowest = self._running[-1].priority
            later = [each for each in self._running[place:] if each.priority == lowest]
            victim = self._of_most_rows(later)
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _of_most_rows(self, sequences: list[Sequence]) -> Sequence:
        """Return the last of those whose job has most rows."""
        return max(reversed(sequences), key=lambda each: self._rows[each.id])

    def _make_way(self) -> list[Sequence]:
        """Preempt sequences of jobs with several rows for the first one of a job that has none."""
        made_way: list[Sequence] = []
        if len(self._rows) == len(self._running) or not self._waiting:
            return made_way  # no job has several
        first = next((each for each in self._waiting if not self._rows[each.id]), None)
        while first is not None and not self._has_room(first):
            victim = self._of_most_rows(self._running)
            if self._rows[victim.id] < 2:
                break
            self._preempt(victim)
            made_way.append(victim)
        return made_way

    def _has_room(self, sequence: Sequence) -> bool:
        return len(self._running) < self._max_rows and self._fits(sequence, 0)

    def _plan_running_prefills(self, budget: int) -> list[Chunk]:
        chunks = []
        for sequence in self._running:
            if sequence.pending > 1 or not sequence.blocks:
                chunk = self._prefill(sequence, budget)
                if chunk:
                    budget -= chunk.end - chunk.start
                    chunks.append(chunk)
        return chunks

    def _unblock_first(self, preempted: list[Sequence]) -> list[Chunk]:
        """Preempt the last sequences until the first can go on."""
        first = self._running[0]
        while len(self._running) > 1:
            preempted.append(self._running[-1])
            self._preempt(self._running[-1])
            chunk = self._prefill(first, self._limit.tokens)
            if chunk:
                return [chunk]
        return []

    def _admit(self, budget: int) -> list[Chunk]:
        chunks = []
        while self._waiting and budget > 0 and len(self._running) < self._max_rows:
            found = self._next()
            if found is None:
                break
            sequence, shared = found
            self._waiting.remove(sequence)
            self._enter(sequence, shared)
            self._restore(sequence)
            chunk = self._prefill(sequence, budget)
            if chunk:
                budget -= chunk.end - chunk.start
                chunks.append(chunk)
        return chunks

    def _next(self) -> tuple[Sequence, list[int]] | None:
        """Return the sequence to admit next, and the blocks that it shares; None if none fits."""
        first = next_to_admit(self._waiting, self._rows, self._awaits_prompt)
        if first is None:
            return None
        if (shared := self._shared_if_fits(first)) is not None:
            return first, shared
        other = may_pass(first, self._waiting, self._rows)
        if other is None or (shared := self._shared_if_fits(other)) is None:
            return None
        first.passed += 1
        return other, shared

    def _shared_if_fits(self, sequence: Sequence) -> list[int] | None:
        shared = self._shared(sequence)
        fits = self._fits(sequence, len(shared) - self._allocator.free_among(shared))
        return shared if fits else None

    def _awaits_prompt(self, sequence: Sequence) -> bool:
        holders = () if sequence.scores else sequence.holders or ()
        return bool(holders) and all(each.computed < self._sharable(each) for each in holders)

    def _sharable(self, sequence: Sequence) -> int:
        """Count the tokens of a prompt's full blocks, without its last: each computes that one."""
        size = self._allocator.block_size
        return (sequence.prompt_length - 1) // size * size

    def _shared(self, sequence: Sequence) -> list[int]:
        """Return the blocks of the prompt that another sequence has computed, if they suffice."""
        tokens = self._sharable(sequence)
        for each in () if sequence.scores else sequence.holders or ():
            if each.computed >= tokens:
                return each.blocks[: tokens // self._allocator.block_size]
        if sequence.keys is None or sequence.scores:
            return []
        full = (len(sequence.tokens) - 1) // self._allocator.block_size
        return self._allocator.find(sequence.keys.of(sequence.tokens, 0, full))

    def _publish(self, sequence: Sequence, end: int) -> None:
        """Let the full blocks of the tokens before ``end`` be found.

        Except for one whose last token may be computed again.
        """
        full = (end - 1) // self._allocator.block_size
        if sequence.keys is None or full <= sequence.published:
            return
        first = sequence.published
        keys = sequence.keys.of(sequence.tokens, first, full)
        for block, key in zip(sequence.blocks[first:full], keys, strict=True):
            self._allocator.publish(block, key, sequence.keys.scope)
        sequence.published = full

    def _enter(self, sequence: Sequence, shared: list[int]) -> None:
        """Make a sequence run, with the blocks that it shares."""
        self._allocator.share(shared)
        sequence.blocks = list(shared)
        sequence.computed = len(shared) * self._allocator.block_size
        sequence.published = len(shared)
        sequence.sound = False
        if not sequence.started:
            sequence.cached = sequence.computed
        insort(self._running, sequence, key=lambda each: -each.priority)
        self._rows[sequence.id] += 1
        if sequence.holders is not None:
            sequence.holders.append(sequence)

    def _restore(self, sequence: Sequence) -> None:
        """Bring back the next blocks of a sequence's beginning that have left the cache."""
        if sequence.keys is None or sequence.scores:
            return
        size, first = self._allocator.block_size, len(sequence.blocks)
        full = (len(sequence.tokens) - 1) // size
        blocks = self._allocator.bring_back(sequence.keys.of(sequence.tokens, first, full))
        if not blocks:
            return
        sequence.blocks += blocks
        sequence.computed += len(blocks) * size
        self._publish(sequence, sequence.computed)
        if not sequence.started:
            sequence.cached = sequence.computed

    def _leave(self, sequence: Sequence) -> list[int]:
        """Make a sequence run no more; return the blocks that it held."""
        self._running.remove(sequence)
        self._rows[sequence.id] -= 1
        if not self._rows[sequence.id]:
            del self._rows[sequence.id]
        if sequence.holders is not None:
            sequence.holders.remove(sequence)
        blocks, sequence.blocks = sequence.blocks, []
        sequence.computed = 0
        return blocks

    def _fits(self, sequence: Sequence, shared: int) -> bool:
        """True if all of its tokens fit beside those that the running prompts still need.

        ``shared`` counts the blocks in use that it shares.
        """
        if not self._running:
            return True
        promised = sum(self._missing_blocks(running) for running in self._running)
        needed = self._missing_blocks(sequence) - shared + promised + self._watermark
        return needed <= self._allocator.free_count

    def _missing_blocks(self, sequence: Sequence) -> int:
        missing = self._allocator.blocks_for(len(sequence.tokens)) - len(sequence.blocks)
        return max(0, missing)  # drafts may have taken one too many

    def _prefill(self, sequence: Sequence, budget: int) -> Chunk | None:
        """Plan as much of the sequence as budget and free blocks allow."""
        held = len(sequence.blocks) + self._allocator.free_count
        room = held * self._allocator.block_size - sequence.computed
        count = min(sequence.pending, budget, room)
        if sequence.scores:
            count = min(count, self._scored_left)
        if count < 1 or not self._grow(sequence, count):
            return None
        if sequence.scores:
            self._scored_left -= count
        return next_chunk(sequence, count)

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Reserve the blocks of the next ``count`` tokens, if so many are free."""
        wanted = self._allocator.blocks_for(sequence.computed + count) - len(sequence.blocks)
        if wanted > self._allocator.free_count:
            return False
        if wanted > 0:
            sequence.blocks += self._allocator.allocate(wanted)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        if self._in_flight:
            raise MustLand
        self.remove(sequence)
        self._waiting.appendleft(sequence)
