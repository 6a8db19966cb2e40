"""Prefix reuse: blocks that were computed are found by their contents; pure bookkeeping."""

import random

import pytest

from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.plan import Plan, Sequence
from workers.engines.text.prefix_keys import PrefixKeys
from workers.engines.text.scheduler import Scheduler

_SIZE = 4


def make(blocks: int = 64, *, rows: int = 8) -> tuple[Scheduler, BlockAllocator]:
    allocator = BlockAllocator(blocks, _SIZE)
    return Scheduler(allocator, max_rows=rows, step_tokens=64, watermark=0.0), allocator


def sequence(name: str, tokens: list[int], scope: str | None = "key") -> Sequence:
    keys = None if scope is None else PrefixKeys(scope, _SIZE)
    return Sequence(name, list(tokens), keys=keys)


def run(scheduler: Scheduler) -> Plan:
    plan = scheduler.schedule()
    scheduler.commit(plan)
    for chunk in plan.chunks:
        if chunk.samples:
            chunk.sequence.tokens.append(1000 + len(chunk.sequence.tokens))
    return plan


def compute(scheduler: Scheduler, one: Sequence, steps: int = 1) -> list[int]:
    """Run a sequence for some steps; return where its first piece began."""
    scheduler.add(one)
    starts = [chunk.start for _ in range(steps) for chunk in run(scheduler).chunks]
    scheduler.remove(one)
    return starts


def test_prefix_key_depends_on_scope_and_on_all_tokens_before() -> None:
    def keys(scope: str, tokens: list[int]) -> list[bytes]:
        return list(PrefixKeys(scope, _SIZE).of(tokens, 0, len(tokens) // _SIZE))

    same = keys("a", list(range(12)))
    assert keys("a", list(range(12))) == same
    assert not set(keys("b", list(range(12)))) & set(same)
    other = keys("a", [9, *range(1, 12)])
    assert not set(other) & set(same)
    late = keys("a", [*range(8), 9, 9, 9, 9])
    assert late[:2] == same[:2]
    assert late[2] != same[2]


def test_prefix_key_is_that_of_the_whole_text_when_it_grows() -> None:
    tokens = list(range(40))
    grown = PrefixKeys("a", _SIZE)
    pieces = [*grown.of(tokens, 0, 3), *grown.of(tokens, 3, 10)]
    assert pieces == list(PrefixKeys("a", _SIZE).of(tokens, 0, 10))


def test_prefix_of_a_lora_has_other_keys_and_the_same_owner() -> None:
    """Check the owner: a key with many LoRAs must not have the shares of many in the cache."""
    tokens = list(range(8))
    plain, one, other = (PrefixKeys("a", _SIZE, lora=each) for each in (None, "x", "y"))
    assert len({key for each in (plain, one, other) for key in each.of(tokens, 0, 2)}) == 6
    assert plain.scope == one.scope == other.scope


def test_prefix_of_an_ended_request_is_not_computed_again() -> None:
    scheduler, allocator = make()
    prompt = list(range(20))
    assert compute(scheduler, sequence("first", prompt)) == [0]
    second = sequence("second", prompt)
    assert compute(scheduler, second) == [16]
    assert second.cached == 16
    assert allocator.books() == {"free": 64, "used": 0, "total": 64}


def test_prefix_of_a_running_request_is_shared() -> None:
    scheduler, allocator = make()
    first, second = sequence("first", list(range(22))), sequence("second", list(range(30)))
    scheduler.add(first)
    run(scheduler)
    scheduler.add(second)
    run(scheduler)
    assert second.blocks[:5] == first.blocks[:5]
    assert second.blocks[5] not in first.blocks
    assert allocator.used_count == 6 + 3
    scheduler.remove(first)
    scheduler.remove(second)
    assert allocator.used_count == 0


def test_prefix_holds_the_answer_of_the_turn_before() -> None:
    scheduler, _ = make()
    first = sequence("first", list(range(10)))
    compute(scheduler, first, steps=7)
    assert len(first.tokens) == 17
    turn = sequence("second", [*first.tokens, 5, 5, 5])
    assert compute(scheduler, turn) == [12]  # of 16 computed tokens the last may be computed again


@pytest.mark.parametrize("scope", ["another", None])
def test_prefix_of_another_scope_is_computed_again(scope: str | None) -> None:
    scheduler, _ = make()
    compute(scheduler, sequence("first", list(range(20))))
    other = sequence("second", list(range(20)), scope)
    assert compute(scheduler, other) == [0]
    assert other.cached == 0


def test_prefix_is_computed_where_the_prompt_is_scored() -> None:
    scheduler, _ = make()
    compute(scheduler, sequence("first", list(range(20))))
    scored = sequence("second", list(range(20)))
    scored.scores = True
    assert compute(scheduler, scored) == [0]


def test_prefix_that_was_used_last_is_evicted_last_and_its_end_first() -> None:
    scheduler, _ = make(blocks=10)
    compute(scheduler, sequence("old", list(range(100, 117))))  # 5 blocks, of which 4 are full
    compute(scheduler, sequence("new", list(range(200, 217))))
    compute(scheduler, sequence("other", list(range(300, 313))))  # the two blank ones, 2 of "old"
    assert compute(scheduler, sequence("new again", list(range(200, 217)))) == [16]
    assert compute(scheduler, sequence("old again", list(range(100, 117)))) == [8]


def test_prefix_of_a_preempted_request_is_found_when_it_goes_on() -> None:
    scheduler, _ = make(blocks=8, rows=2)
    old, young = sequence("old", list(range(12))), sequence("young", list(range(50, 58)))
    scheduler.add(old)
    scheduler.add(young)
    while young.blocks or not young.started:
        run(scheduler)
    reached = len(young.tokens)
    scheduler.remove(old)
    again = run(scheduler).chunks[0]
    assert again.sequence is young
    assert 0 < again.start <= reached
    assert young.cached == 0  # it was its own


def test_blocks_that_were_forgotten_are_not_found() -> None:
    scheduler, allocator = make()
    broken, reader = sequence("broken", list(range(20))), sequence("reader", list(range(20)))
    scheduler.add(broken)
    run(scheduler)
    scheduler.add(reader)
    run(scheduler)
    assert allocator.forget(broken.blocks) == broken.blocks[4:]  # the others have a reader
    scheduler.remove(broken)
    scheduler.remove(reader)
    assert compute(scheduler, sequence("third", list(range(20)))) == [0]


@pytest.mark.parametrize("seed", range(20))
def test_prefix_reuse_gives_each_sequence_the_blocks_of_its_own_tokens(seed: int) -> None:
    """Random arrivals over common beginnings, with cancels and preemption."""
    chance = random.Random(seed)
    blocks = chance.randint(10, 24)
    scheduler, allocator = make(blocks, rows=chance.randint(1, 6))
    written: dict[int, list[int]] = {}  #: what each block holds
    left: dict[str, tuple[Sequence, int]] = {}
    beginnings = [[chance.randint(0, 9) for _ in range(24)] for _ in range(3)]
    for number in range(40):
        start = chance.choice(beginnings)[: chance.randint(1, 24)]
        tail = [chance.randint(0, 9) for _ in range(chance.randint(1, 8))]
        one = sequence(f"s{number}", start + tail, chance.choice(["a", "b", None]))
        left[one.id] = one, chance.randint(1, 6)
        scheduler.add(one)
    for _ in range(5_000):
        if not left:
            break
        plan = scheduler.schedule()
        assert plan.chunks, "one row can always go on"
        for chunk in plan.chunks:
            one = chunk.sequence
            for place in range(chunk.start):
                held = written[one.blocks[place // _SIZE]]
                assert held[place % _SIZE] == one.tokens[place], "what it reads is its own text"
            for place in range(chunk.start, chunk.end):
                block = written.setdefault(one.blocks[place // _SIZE], [-1] * _SIZE)
                block[place % _SIZE] = one.tokens[place]
        scheduler.commit(plan)
        for chunk in plan.chunks:
            one, more = left[chunk.sequence.id]
            if chunk.samples:
                one.tokens.append(chance.randint(0, 9))
            if len(one.tokens) - one.prompt_length > more or chance.random() < 0.05:
                del left[one.id]
                scheduler.remove(one)
        books = allocator.books()
        assert books["free"] + books["used"] == books["total"]
    assert not left
    assert allocator.used_count == 0
