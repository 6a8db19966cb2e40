"""Steps that are planned before the tokens of the one before are known; pure bookkeeping."""

import random

import pytest

from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.text.prefix_keys import PrefixKeys
from workers.engines.text.scheduler import MustLand, Scheduler

_SIZE = 4


def make(blocks: int = 64, *, rows: int = 8) -> tuple[Scheduler, BlockAllocator]:
    allocator = BlockAllocator(blocks, _SIZE)
    return Scheduler(allocator, max_rows=rows, step_tokens=64, watermark=0.0), allocator


def launch(scheduler: Scheduler, *, in_flight: bool) -> Plan:
    plan = scheduler.schedule(in_flight=in_flight)
    scheduler.launched(plan)
    return plan


def land(scheduler: Scheduler, plan: Plan, token: int = 7) -> None:
    for chunk in plan.chunks:
        scheduler.landed(chunk)
        if chunk.samples:
            chunk.sequence.tokens.append(token)


def test_overlap_plans_the_place_after_a_promised_token() -> None:
    scheduler, _ = make()
    one = Sequence("one", [1, 2, 3, 4, 5])
    scheduler.add(one)
    first = launch(scheduler, in_flight=False)
    second = launch(scheduler, in_flight=True)
    assert [(each.start, each.end, each.samples) for each in second.decodes] == [(5, 6, True)]
    land(scheduler, first)
    third = launch(scheduler, in_flight=True)
    assert [(each.start, each.end) for each in third.decodes] == [(6, 7)]
    assert (one.promised, one.length) == (2, 8)


def test_overlap_plans_nothing_after_a_last_token() -> None:
    scheduler, _ = make()
    one, other = Sequence("one", [1, 2], most=4), Sequence("other", [1, 2], most=20)
    scheduler.add(one)
    scheduler.add(other)
    plans = [launch(scheduler, in_flight=False)]
    for _ in range(2):
        plans.append(launch(scheduler, in_flight=True))
        land(scheduler, plans[-2])
    planned = [[chunk.sequence.id for chunk in plan.chunks] for plan in plans]
    assert planned == [["one", "other"], ["one", "other"], ["other"]]


def test_overlap_lets_others_find_a_block_when_its_step_has_landed() -> None:
    """Check that blocks are published late, as a step in flight may write NaN."""
    scheduler, allocator = make()
    tokens = list(range(9))
    one = Sequence("one", list(tokens), keys=PrefixKeys("key", _SIZE))
    scheduler.add(one)
    first = launch(scheduler, in_flight=False)
    keys = list(PrefixKeys("key", _SIZE).of(tokens, 0, 2))
    assert not allocator.find(keys)
    second = launch(scheduler, in_flight=True)
    land(scheduler, first)
    assert allocator.find(keys) == one.blocks[:2]
    # The second writes the token that is known only now, and publishes nothing of its block.
    scheduler.withdraw(one)
    assert second.decodes[0].end == 10
    assert len(allocator._published) == 2


def test_overlap_takes_no_blocks_from_a_step_in_flight() -> None:
    scheduler, allocator = make(blocks=4)
    old, young = Sequence("old", [1] * 7), Sequence("young", [2] * 7)
    scheduler.add(old)
    scheduler.add(young)
    first = launch(scheduler, in_flight=False)
    second = launch(scheduler, in_flight=True)
    land(scheduler, first)
    with pytest.raises(MustLand):  # both need a third block
        scheduler.schedule(in_flight=True)
    land(scheduler, second)
    third = scheduler.schedule()
    assert third.preempted == [young]
    assert [chunk.sequence for chunk in third.decodes] == [old]
    assert allocator.used_count == len(old.blocks)


def test_overlap_computes_a_token_again_that_was_decided_late() -> None:
    scheduler, _ = make()
    one = Sequence("one", [1, 2, 3])
    scheduler.add(one)
    first = launch(scheduler, in_flight=False)
    launch(scheduler, in_flight=True)
    land(scheduler, first)
    scheduler.retract(one)  # the second was computed from no token
    third = launch(scheduler, in_flight=True)
    assert [(each.start, each.end, each.samples) for each in third.decodes] == [(3, 4, True)]


class Rig:
    """Runs random texts as a pipeline does: a step is planned before the one before has landed."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.scheduler, self.allocator = make(chance.randint(10, 24), rows=chance.randint(1, 6))
        self.flight: Plan | None = None
        self.held: list[int] = []  #: blocks of texts that have ended, which the flight writes
        self.written: dict[int, list[int]] = {}  #: what each block holds
        self.left: dict[str, int] = {}  #: tokens until the end, known when they have landed only
        self.chosen: dict[str, list[int]] = {}  #: prompt and tokens, as the device knows them
        beginnings = [[chance.randint(0, 9) for _ in range(24)] for _ in range(3)]
        for number in range(40):
            start = chance.choice(beginnings)[: chance.randint(1, 24)]
            tokens = start + [chance.randint(0, 9) for _ in range(chance.randint(1, 8))]
            name, more = f"s{number}", chance.randint(1, 6)
            most = len(tokens) + more if chance.random() < 0.5 else None
            self.left[name], self.chosen[name] = more, list(tokens)
            keys = PrefixKeys("key", _SIZE)
            self.scheduler.add(Sequence(name, list(tokens), most=most, keys=keys))

    def step(self) -> None:
        plan = self._plan()
        assert plan.chunks or self.flight, "one row can always go on"
        for chunk in plan.chunks:
            self._compute(chunk)
        self.scheduler.launched(plan)
        self._land(plan)
        self.flight = plan if plan.chunks else None
        books = self.allocator.books()
        assert books["free"] + books["used"] == books["total"]

    def _plan(self) -> Plan:
        try:
            return self.scheduler.schedule(in_flight=self.flight is not None)
        except MustLand:
            self._land(None)
            self.flight = None
            return self.scheduler.schedule()

    def _compute(self, chunk: Chunk) -> None:
        one, known = chunk.sequence, self.chosen[chunk.sequence.id]
        for place in range(chunk.start):
            held = self.written[one.blocks[place // _SIZE]]
            assert held[place % _SIZE] == known[place], "what it reads is its own text"
        for place in range(chunk.start, chunk.end):
            block = one.blocks[place // _SIZE]
            assert block not in self.held, "a step in flight writes it"
            self.written.setdefault(block, [-1] * _SIZE)[place % _SIZE] = known[place]
        if chunk.samples and len(known) == chunk.end:
            known.append(self.chance.randint(0, 9))

    def _land(self, ahead: Plan | None) -> None:
        """Take the tokens of the step in flight; ``ahead`` is queued behind it."""
        before, self.held = self.held, []
        for chunk in self.flight.chunks if self.flight else ():
            one = chunk.sequence
            if one.id not in self.left:
                continue
            self.scheduler.landed(chunk)
            if chunk.samples:
                one.tokens.append(self.chosen[one.id][len(one.tokens)])
                self.left[one.id] -= 1
                if not self.left[one.id] or self.chance.random() < 0.05:
                    self._end(one, ahead)
        self.allocator.release(before)

    def _end(self, one: Sequence, ahead: Plan | None) -> None:
        del self.left[one.id]
        blocks = self.scheduler.withdraw(one)
        if ahead is not None and one in {chunk.sequence for chunk in ahead.chunks}:
            self.held += blocks
        else:
            self.allocator.release(blocks)


@pytest.mark.parametrize("seed", range(20))
def test_overlap_gives_each_sequence_the_blocks_of_its_own_tokens(seed: int) -> None:
    """Random arrivals over common beginnings, with unforeseen ends, and preemption."""
    rig = Rig(seed)
    for _ in range(5_000):
        if not rig.left and rig.flight is None:
            break
        rig.step()
    assert not rig.left
    assert rig.allocator.used_count == 0
