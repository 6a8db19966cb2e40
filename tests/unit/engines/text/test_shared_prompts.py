"""Sequences of one job and of one prompt: pure bookkeeping, held by random play."""

import random

import pytest

from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.plan import Plan, Sequence
from workers.engines.text.scheduler import Scheduler


def make(
    blocks: int = 64, *, rows: int = 8, step_tokens: int = 16
) -> tuple[Scheduler, BlockAllocator]:
    allocator = BlockAllocator(blocks, 4)
    return Scheduler(allocator, max_rows=rows, step_tokens=step_tokens, watermark=0.0), allocator


def choices(name: str, length: int, count: int) -> list[Sequence]:
    holders: list[Sequence] = []
    tokens = list(range(length))
    return [Sequence(name, list(tokens), holders=holders) for _ in range(count)]


def run(scheduler: Scheduler) -> Plan:
    plan = scheduler.schedule()
    scheduler.commit(plan)
    for chunk in plan.chunks:
        if chunk.samples:
            chunk.sequence.tokens.append(7)
    return plan


def pieces(plan: Plan) -> list[tuple[int, int]]:
    return [(chunk.start, chunk.end) for chunk in plan.chunks]


def test_blocks_that_are_shared_are_free_once_all_have_released_them() -> None:
    allocator = BlockAllocator(4, 16)
    blocks = allocator.allocate(2)
    allocator.share(blocks[:1])
    allocator.release(blocks)
    assert allocator.books() == {"free": 3, "used": 1, "total": 4}
    allocator.release(blocks[:1])
    assert allocator.books() == {"free": 4, "used": 0, "total": 4}
    with pytest.raises(ValueError, match="not in use"):
        allocator.share(blocks)


def test_prompt_is_computed_once_for_all_its_choices() -> None:
    scheduler, allocator = make()
    several = choices("a", 22, 3)
    for each in several:
        scheduler.add(each)
    assert [pieces(run(scheduler)) for _ in range(2)] == [[(0, 16)], [(16, 22)]]
    assert pieces(run(scheduler)) == [(22, 23), (20, 22), (20, 22)]
    assert allocator.used_count == 5 + 3
    assert len({tuple(each.blocks[:5]) for each in several}) == 1
    for each in several:
        scheduler.remove(each)
    assert allocator.used_count == 0


def test_each_job_has_a_row_before_another_has_its_second() -> None:
    scheduler, _ = make(rows=4)
    several = choices("many", 2, 6)
    for each in several:
        scheduler.add(each)
    for _ in range(3):
        run(scheduler)
    assert scheduler.running_count == 4
    for name in "bcd":
        scheduler.add(Sequence(name, [1, 2]))
    for _ in range(4):
        plan = run(scheduler)
    assert {chunk.sequence.id for chunk in plan.chunks} == {"many", "b", "c", "d"}
    scheduler.add(Sequence("e", [1, 2]))
    assert "e" not in {chunk.sequence.id for chunk in run(scheduler).chunks}


def test_prompts_of_one_job_do_not_hold_up_another_s() -> None:
    scheduler, _ = make(blocks=1000, rows=8)
    for _ in range(6):
        scheduler.add(Sequence("many", list(range(400))))
    run(scheduler)
    scheduler.add(Sequence("b", list(range(20))))
    plans = [run(scheduler) for _ in range(400 // 16 + 3)]  # the prompt that has begun, then b
    assert "b" in {chunk.sequence.id for plan in plans for chunk in plan.chunks}


def test_blocks_of_a_job_s_choices_make_way_for_another_job() -> None:
    scheduler, allocator = make(blocks=8, rows=8)
    for each in choices("many", 5, 4):
        scheduler.add(each)
    for _ in range(4):
        run(scheduler)
    assert allocator.books()["free"] < 5
    scheduler.add(Sequence("b", list(range(16))))
    plans = [run(scheduler) for _ in range(3)]
    assert "b" in {chunk.sequence.id for plan in plans for chunk in plan.chunks}


def test_scored_tokens_of_a_step_are_bounded() -> None:
    scheduler, _ = make(blocks=2000, step_tokens=4096)
    for name in "ab":
        scheduler.add(Sequence(name, list(range(1500)), scores=True))
    scheduler.add(Sequence("c", list(range(900))))
    plan = run(scheduler)
    assert sum(chunk.scored for chunk in plan.chunks) == 256
    assert plan.tokens == 256 + 900


@pytest.mark.parametrize("seed", range(12))
def test_scheduler_of_many_choices_ends_within_budget_and_with_balanced_books(seed: int) -> None:
    chance = random.Random(seed)
    blocks = chance.randint(8, 20)
    scheduler, allocator = make(
        blocks, rows=chance.randint(1, 6), step_tokens=chance.randint(6, 20)
    )
    left: dict[Sequence, int] = {}
    for number in range(12):
        length = chance.randint(1, 3 * blocks)
        several = choices(f"job {number}", length, chance.randint(1, 4))
        several[0].scores = chance.random() < 0.3
        for each in several:
            left[each] = length + chance.randint(1, blocks * 4 - length)
            scheduler.add(each)
    for _ in range(20_000):
        if not left:
            break
        plan = run(scheduler)
        assert plan.chunks, "one can always go on"
        check(plan, allocator)
        for chunk in plan.chunks:
            one = chunk.sequence
            if len(one.tokens) > left[one] or chance.random() < 0.01:
                del left[one]
                scheduler.remove(one)
    assert not left
    assert allocator.used_count == scheduler.running_count == scheduler.waiting_count == 0


def check(plan: Plan, allocator: BlockAllocator) -> None:
    books = allocator.books()
    assert books["free"] + books["used"] == books["total"]
    assert len({chunk.sequence for chunk in plan.chunks}) == len(plan.chunks)
    writes = [
        (chunk.sequence.blocks[place // 4], place % 4)
        for chunk in plan.chunks
        for place in range(chunk.start, chunk.end)
    ]
    assert len(set(writes)) == len(writes), "no place is written by two sequences"
    written = {block for block, _ in writes}
    for chunk in plan.chunks:
        kept = set(chunk.sequence.blocks[: chunk.start // 4])
        assert not kept & written, "what is computed stays as it is"
