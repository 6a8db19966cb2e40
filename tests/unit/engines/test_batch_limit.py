"""The limit of a batch after running out of memory."""

from workers.engines.batch_limit import CAUTIOUS_PASSES, BatchLimit


def pass_often(limit: BatchLimit, count: int) -> None:
    for _ in range(count):
        limit.passed()


def test_batch_limit_halves_and_doubles_up_to_the_settings() -> None:
    limit = BatchLimit(6)
    assert limit.halve(5) == limit.now == 2
    pass_often(limit, CAUTIOUS_PASSES - 1)
    assert limit.now == 2
    limit.passed()
    assert limit.now == 4
    pass_often(limit, CAUTIOUS_PASSES)
    assert limit.now == 6
    pass_often(limit, 10 * CAUTIOUS_PASSES)
    assert limit.now == 6


def test_batch_limit_is_at_least_one_and_never_rises_by_halving() -> None:
    limit = BatchLimit(8)
    assert limit.halve(1) == 1
    assert limit.halve(8) == 1  # passes of the old size may still be under way


def test_batch_limit_counts_again_after_each_failure() -> None:
    limit = BatchLimit(8)
    limit.halve(8)
    pass_often(limit, CAUTIOUS_PASSES - 1)
    limit.halve(4)
    limit.passed()
    assert limit.now == 2
