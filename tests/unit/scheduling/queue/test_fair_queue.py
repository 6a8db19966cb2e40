"""Tests which job goes next: shares, levels, ageing; none is lost or served twice."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.scheduling.queue.fair_queue import FairQueue, FairShare

NEVER = 1e9


def queue(ageing: float = NEVER) -> FairQueue[str]:
    return FairQueue(ageing)


def keys_of(items: list[str]) -> str:
    return "".join(item[0] for item in items)


def test_fairness_a_key_goes_next_behind_two_hundred_jobs_of_another() -> None:
    waiting = queue()
    for number in range(200):
        waiting.push(f"h{number}", FairShare("heavy"), 1.0, 0.0)
    assert [waiting.pop(0.0) for _ in range(3)] == ["h0", "h1", "h2"]
    waiting.push("l", FairShare("light"), 1.0, 0.0)
    assert waiting.pop(0.0) == "l"
    assert waiting.pop(0.0) == "h3"


def test_fairness_serves_one_key_in_order_of_arrival() -> None:
    waiting = queue()
    for number in range(50):
        waiting.push(str(number), FairShare("k"), float(number % 7), 0.0)
    assert [waiting.pop(0.0) for _ in range(50)] == [str(number) for number in range(50)]
    with pytest.raises(IndexError):
        waiting.pop(0.0)


def test_fairness_counts_work_and_not_requests() -> None:
    waiting = queue()
    for number in range(40):
        waiting.push(f"s{number}", FairShare("small"), 1.0, 0.0)
        waiting.push(f"l{number}", FairShare("large"), 4.0, 0.0)
    served = Counter(keys_of([waiting.pop(0.0) for _ in range(40)]))
    assert served["s"] == pytest.approx(32, abs=1)


def test_fairness_weights_are_shares() -> None:
    waiting = queue()
    for number in range(100):
        waiting.push(f"p{number}", FairShare("pro", weight=4.0), 1.0, 0.0)
        waiting.push(f"f{number}", FairShare("free", weight=1.0), 1.0, 0.0)
    for taken in range(10, 101, 10):
        served = Counter(keys_of([waiting.pop(0.0) for _ in range(10)]))
        assert served["p"] == pytest.approx(8, abs=1), taken


def test_fairness_gives_no_credit_for_idle_time() -> None:
    waiting = queue()
    for number in range(100):
        waiting.push(f"a{number}", FairShare("a"), 1.0, 0.0)
    for _ in range(50):
        waiting.pop(0.0)
    for number in range(10):
        waiting.push(f"b{number}", FairShare("b"), 1.0, 0.0)
    served = Counter(keys_of([waiting.pop(0.0) for _ in range(10)]))
    assert served == {"a": 5, "b": 5}


def test_fairness_charges_afterwards_what_a_job_really_took() -> None:
    waiting = queue()
    cheat, honest = FairShare("cheat"), FairShare("honest")
    waiting.push("c0", cheat, 1.0, 0.0)
    waiting.pop(0.0)
    waiting.charge(cheat, 9.0)  # it had said 1 and took 10
    for number in range(12):
        waiting.push(f"c{number}", cheat, 1.0, 0.0)
        waiting.push(f"h{number}", honest, 1.0, 0.0)
    assert keys_of([waiting.pop(0.0) for _ in range(10)]).count("c") <= 1


def test_priority_of_a_higher_level_goes_first() -> None:
    waiting = queue()
    for name, level in (("n", 0), ("low", -1), ("high", 3), ("m", 2)):
        waiting.push(name, FairShare(name, level), 1.0, 0.0)
    assert [waiting.pop(1.0) for _ in range(4)] == ["high", "m", "n", "low"]


def test_priority_of_a_low_level_is_not_starved_by_a_higher_one() -> None:
    waiting = queue(ageing=10.0)
    waiting.push("low", FairShare("low", 0), 1.0, 0.0)
    for second in range(100):
        waiting.push(f"high{second}", FairShare("high", 2), 1.0, float(second))
        if waiting.pop(float(second)) == "low":
            break
    assert 20 <= second <= 21  # two levels, 10 s each


def test_ageing_of_the_requests_of_a_key_does_not_pass_another_key() -> None:
    waiting = queue(ageing=1.0)
    for number in range(100):
        waiting.push(f"h{number}", FairShare("heavy"), 1.0, 0.0)
    for second in range(50):
        waiting.pop(float(second))
    waiting.push("l", FairShare("light"), 1.0, 50.0)
    assert "l" in [waiting.pop(50.0) for _ in range(2)]


def test_fairness_forgets_keys_that_are_gone() -> None:
    waiting = queue()
    for number in range(10_000):
        waiting.push("x", FairShare(str(number)), 1.0, 0.0)
        waiting.pop(0.0)
    assert len(waiting._tags) < 200


requests = st.tuples(
    st.sampled_from("abcd"), st.integers(-1, 2), st.sampled_from([1.0, 2.0]), st.floats(0.5, 50)
)


@given(st.lists(requests, max_size=60), st.data())
def test_fairness_queue_returns_each_job_once_in_the_order_that_was_told(
    pushed: list[tuple[str, int, float, float]], data: st.DataObject
) -> None:
    waiting: FairQueue[int] = FairQueue(NEVER)
    for number, (key, level, weight, work) in enumerate(pushed):
        ahead = waiting.push(number, FairShare(key, level, weight), work, 0.0)
        assert 0 <= ahead <= number
    gone = set()
    if pushed:
        gone = set(data.draw(st.lists(st.integers(0, len(pushed) - 1), unique=True)))
    for number in gone:
        assert waiting.remove(number)
        assert not waiting.remove(number)
    left = set(range(len(pushed))) - gone
    assert set(waiting) == left
    assert len(waiting) == len(left)
    told = waiting.order(0.0)
    served = [waiting.pop(0.0) for _ in range(len(left))]
    assert sorted(served) == sorted(left)
    assert sorted(told) == sorted(served)
    levels = [pushed[number][1] for number in served]
    assert levels == sorted(levels, reverse=True)
    assert len(waiting) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=30))
def test_fairness_counts_jobs_that_need_not_wait_like_those_that_do(
    at_once: list[tuple[str, int]],
) -> None:
    passed, queued = queue(), queue()
    for key, cost in at_once:
        passed.pass_by(FairShare(key), cost)
        queued.push("x", FairShare(key), cost, 0.0)
        queued.pop(0.0)
    for waiting in (passed, queued):
        for number in range(12):
            waiting.push(f"{'abc'[number % 3]}{number}", FairShare("abc"[number % 3]), 1.0, 0.0)
    assert [passed.pop(0.0) for _ in range(12)] == [queued.pop(0.0) for _ in range(12)]
