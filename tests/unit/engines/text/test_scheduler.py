"""Blocks and plans: pure bookkeeping, so every rule can be held by random play."""

import random

import pytest

from workers.engines.text.blocks import NULL_BLOCK, BlockAllocator, NoFreeBlocks
from workers.engines.text.plan import Plan, Sequence
from workers.engines.text.scheduler import Scheduler


def books_add_up(allocator: BlockAllocator) -> bool:
    books = allocator.books()
    return books["free"] + books["used"] == books["total"]


def test_blocks_are_handed_out_once_and_come_back() -> None:
    allocator = BlockAllocator(4, 16)
    first = allocator.allocate(3)
    assert len(set(first)) == 3
    assert NULL_BLOCK not in first
    with pytest.raises(NoFreeBlocks):
        allocator.allocate(2)
    assert allocator.books() == {"free": 1, "used": 3, "total": 4}
    allocator.release(first)
    assert allocator.books() == {"free": 4, "used": 0, "total": 4}
    with pytest.raises(ValueError, match="not in use"):
        allocator.release(first)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_are_taken_whole(tokens: int, blocks: int) -> None:
    assert BlockAllocator(1, 16).blocks_for(tokens) == blocks


def make(
    blocks: int = 64, *, rows: int = 8, step_tokens: int = 16, watermark: float = 0.05
) -> tuple[Scheduler, BlockAllocator]:
    allocator = BlockAllocator(blocks, 4)
    scheduler = Scheduler(allocator, max_rows=rows, step_tokens=step_tokens, watermark=watermark)
    return scheduler, allocator


def sequence(name: str, length: int, priority: int = 0) -> Sequence:
    return Sequence(name, list(range(length)), priority=priority)


def run(scheduler: Scheduler) -> Plan:
    """Run one step in which every chunk that samples gets the token 7."""
    plan = scheduler.schedule()
    scheduler.commit(plan)
    for chunk in plan.chunks:
        if chunk.samples:
            chunk.sequence.tokens.append(7)
    return plan


def test_prefill_of_a_long_prompt_is_cut_to_the_budget_and_samples_at_its_end() -> None:
    scheduler, _ = make()
    scheduler.add(sequence("a", 40))
    plans = [run(scheduler) for _ in range(4)]
    pieces = [(c.start, c.end, c.samples) for plan in plans for c in plan.chunks]
    assert pieces == [(0, 16, False), (16, 32, False), (32, 40, True), (40, 41, True)]
    assert [len(plan.started) for plan in plans] == [1, 0, 0, 0]


def test_decodes_come_first_and_prompts_fill_the_rest() -> None:
    scheduler, _ = make()
    scheduler.add(sequence("a", 4))
    run(scheduler)
    scheduler.add(sequence("b", 40))
    plan = run(scheduler)
    assert [c.sequence.id for c in plan.decodes] == ["a"]
    assert [(c.sequence.id, c.end - c.start) for c in plan.prefills] == [("b", 15)]


def test_rows_beyond_the_limit_wait() -> None:
    scheduler, _ = make(rows=2)
    for name in "abc":
        scheduler.add(sequence(name, 2))
    plan = run(scheduler)
    assert [c.sequence.id for c in plan.chunks] == ["a", "b"]
    scheduler.remove(plan.chunks[0].sequence)
    assert [c.sequence.id for c in run(scheduler).prefills] == ["c"]


def test_watermark_stays_free_when_a_prompt_is_admitted_beside_others() -> None:
    scheduler, _ = make(blocks=10, step_tokens=64, watermark=0.2)
    scheduler.add(sequence("a", 20))  # 5 of 10 blocks
    scheduler.add(sequence("b", 16))  # 4 more would leave 1, the margin is 2
    assert [c.sequence.id for c in run(scheduler).chunks] == ["a"]


def test_preemption_takes_the_youngest_which_is_computed_again_later() -> None:
    scheduler, allocator = make(blocks=4, step_tokens=32, watermark=0.0)
    old, young = sequence("old", 8), sequence("young", 7)
    scheduler.add(old)
    scheduler.add(young)
    run(scheduler)
    plan = run(scheduler)
    assert plan.preempted == [young]
    assert [c.sequence.id for c in plan.chunks] == ["old"]
    assert young.blocks == []
    scheduler.remove(old)
    again = run(scheduler).prefills[0]
    assert (again.sequence, again.start, again.end) == (young, 0, 8)
    assert again.samples
    assert books_add_up(allocator)


@pytest.mark.parametrize(("old", "young"), [(0, 2), (-1, 0)])
def test_preemption_takes_the_lowest_priority_first(old: int, young: int) -> None:
    scheduler, allocator = make(blocks=6, step_tokens=32, watermark=0.0)
    low, later = sequence("low", 8, old), sequence("later", 7, old)
    high = sequence("high", 7, young)
    for each in (low, later, high):
        scheduler.add(each)
    run(scheduler)
    plan = run(scheduler)
    assert plan.preempted == [later]
    assert [c.sequence.id for c in plan.chunks] == ["high", "low"]
    while not plan.preempted or plan.preempted == [later]:
        plan = run(scheduler)
    assert plan.preempted == [low]
    scheduler.remove(high)
    assert [c.sequence.id for c in run(scheduler).prefills] == ["low", "later"]
    assert books_add_up(allocator)


def _steps_of_high(scheduler: Scheduler, low: Sequence | None) -> int:
    """Return the steps in which forty texts of a high priority end, eight of which come at once.

    ``low`` runs before they come, takes most blocks, and begins anew whenever it has ended.
    """
    if low is not None:
        scheduler.add(low)
        run(scheduler)
    made, left = 0, set[Sequence]()
    for step in range(1, 2000):
        while len(left) < 8 and made < 40:
            left.add(high := sequence(f"high{made}", 7, 1))
            scheduler.add(high)
            made += 1
        for each in [chunk.sequence for chunk in run(scheduler).chunks]:
            if each is low and len(each.tokens) >= 78:
                scheduler.remove(low)
                scheduler.add(low := sequence("low", 64, low.priority))
            elif each in left and len(each.tokens) >= 16:
                left.discard(each)
                scheduler.remove(each)
        if not left:
            return step
    raise AssertionError("they do not end")


def test_preemption_of_a_long_text_lets_those_of_higher_priority_in_before_it() -> None:
    """It waited at the front for most of the cache, and each of them behind it for a place."""
    scheduler, _ = make(blocks=20, step_tokens=64)
    alone = _steps_of_high(scheduler, None)
    scheduler, _ = make(blocks=20, step_tokens=64)
    assert _steps_of_high(scheduler, sequence("low", 64, -1)) < 1.5 * alone


def test_preemption_is_no_end_for_a_text_while_those_of_higher_priority_come() -> None:
    scheduler, _ = make(blocks=20, step_tokens=64)
    scheduler.add(low := sequence("low", 64, -1))
    made = 0
    for _ in range(3000):
        while scheduler.running_count + scheduler.waiting_count < 9:
            scheduler.add(sequence(f"high{made}", 7, 1))
            made += 1
        for each in [chunk.sequence for chunk in run(scheduler).chunks]:
            if each is low and len(low.tokens) >= 70:
                return
            if each is not low and len(each.tokens) >= 16:
                scheduler.remove(each)
    raise AssertionError("it never ends")


@pytest.mark.parametrize("seed", range(12))
def test_scheduler_starves_nobody_whatever_arrives_and_leaves(seed: int) -> None:
    """Jobs of all priorities and lengths come while others run; some are cancelled."""
    chance = random.Random(seed)
    blocks = chance.randint(8, 20)
    scheduler, allocator = make(
        blocks, rows=chance.randint(2, 6), step_tokens=chance.randint(6, 20)
    )
    left: dict[str, tuple[Sequence, int]] = {}
    preempted: list[int] = []
    for step in range(20_000):
        if step < 400 and chance.random() < 0.1:
            length = chance.randint(1, 2 * blocks)
            one = sequence(f"s{step}", length, chance.randint(-2, 5))
            left[one.id] = (one, length + chance.randint(1, blocks * 4 - length))
            scheduler.add(one)
        if left and chance.random() < 0.02:
            scheduler.remove(left.pop(chance.choice(list(left)))[0])
        if not left:
            if step >= 400:
                break
            continue
        plan = run(scheduler)
        assert plan.chunks, "one row can always go on"
        check_plan(plan, allocator)
        for gone in plan.preempted:
            preempted.append(gone.priority)
            assert all(chunk.sequence.priority >= gone.priority for chunk in plan.decodes)
        for chunk in plan.chunks:
            one = chunk.sequence
            if len(one.tokens) > left[one.id][1]:
                del left[one.id]
                scheduler.remove(one)
    assert not left
    assert preempted
    assert allocator.used_count == scheduler.running_count == scheduler.waiting_count == 0


def test_blocks_are_inspected_when_they_are_freed_before_a_token_has_shown_them_sound() -> None:
    seen: list[list[int]] = []
    scheduler = Scheduler(
        BlockAllocator(8, 4), max_rows=8, step_tokens=7, watermark=0.0, inspect=seen.append
    )
    known, new = sequence("known", 4), sequence("new", 12)
    scheduler.add(known)
    run(scheduler)
    known.sound = True
    scheduler.add(new)
    run(scheduler)
    blocks = list(new.blocks)
    scheduler.remove(new)
    assert seen == [blocks]
    scheduler.remove(known)
    assert len(seen) == 1


def test_out_of_memory_makes_steps_small_for_a_while() -> None:
    scheduler, _ = make(blocks=4096, rows=1)
    scheduler.add(sequence("long", 8_000))
    assert run(scheduler).tokens == 16
    scheduler.limit_step(5)
    sizes = [run(scheduler).tokens for _ in range(700)]
    assert list(dict.fromkeys(sizes)) == [5, 10, 16]
    assert sizes.count(5) > 100


@pytest.mark.parametrize("seed", range(20))
def test_scheduler_always_ends_within_budget_and_with_balanced_books(seed: int) -> None:
    chance = random.Random(seed)
    blocks = chance.randint(8, 20)
    scheduler, allocator = make(
        blocks, rows=chance.randint(1, 6), step_tokens=chance.randint(6, 20)
    )
    left = {}
    for number in range(25):
        length = chance.randint(1, 3 * blocks)
        one = sequence(f"s{number}", length)
        left[one.id] = (one, length + chance.randint(1, blocks * 4 - length))
        scheduler.add(one)
    for _ in range(20_000):
        if not left:
            break
        plan = run(scheduler)
        assert plan.chunks, "one row can always go on"
        check_plan(plan, allocator)
        for chunk in plan.chunks:
            one = chunk.sequence
            if len(one.tokens) > left[one.id][1] or chance.random() < 0.01:
                del left[one.id]
                scheduler.remove(one)
    assert not left
    assert allocator.used_count == scheduler.running_count == scheduler.waiting_count == 0


def check_plan(plan: Plan, allocator: BlockAllocator) -> None:
    assert books_add_up(allocator)
    assert len({c.sequence.id for c in plan.chunks}) == len(plan.chunks)
    held = [block for c in plan.chunks for block in c.sequence.blocks]
    assert len(set(held)) == len(held), "no block has two owners"
    for chunk in plan.chunks:
        assert len(chunk.sequence.blocks) * allocator.block_size >= chunk.end
