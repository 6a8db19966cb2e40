"""Rates: no refusal is ever a microsecond wrong, and no caller gets more than the limit says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyrate_limiter import Rate as OtherRate
from pyrate_limiter.abstracts.algorithm import GCRA

from bitinglip.access.limits import gcra
from bitinglip.access.limits.gcra import FULL, SECOND, Rate

MINUTE = 60 * SECOND
START = 10**12  #: a clock that has run for eleven days

rates = st.builds(
    Rate,
    quota=st.integers(1, 5000),
    window=st.sampled_from([SECOND, MINUTE, 60 * MINUTE]),
    burst=st.integers(1, 500),
)
gaps = st.lists(st.integers(0, 90 * SECOND), max_size=60)


@given(rates, gaps, st.integers(1, FULL))
def test_rate_passes_exactly_after_the_wait_that_it_told(
    rate: Rate, gaps: list[int], share: int
) -> None:
    tat, now = 0, START
    for gap in gaps:
        now += gap
        asked = gcra.step(rate, tat, now, share=share)
        if asked.wait:
            assert gcra.step(rate, tat, now + asked.wait - 1, share=share).wait == 1
            now += asked.wait
            asked = gcra.step(rate, tat, now, share=share)
        assert asked.wait == 0
        tat = asked.tat


@given(rates, gaps, st.integers(1, FULL))
def test_rate_tells_what_is_left(rate: Rate, gaps: list[int], share: int) -> None:
    tat, now = 0, START
    for gap in gaps:
        now += gap
        before = gcra.read(rate, tat, now, share=share)
        asked = gcra.step(rate, tat, now, share=share)
        assert (asked.wait == 0) == (before.remaining > 0)
        if asked.wait:
            assert asked.wait == before.next_unit
            continue
        assert gcra.read(rate, asked.tat, now, share=share).remaining in (
            before.remaining - 1,
            before.remaining,  # a part of a unit more than the burst was there
        )
        if before.next_unit:
            later = gcra.read(rate, tat, now + before.next_unit, share=share)
            assert later.remaining == before.remaining + 1
        full = gcra.read(rate, tat, now + before.reset, share=share)
        assert (full.reset, full.next_unit) == (0, 0)
        tat = asked.tat


#: the other library rounds what a unit takes up to whole microseconds
@given(
    st.sampled_from([1, 2, 3, 10, 60, 100, 1000]),
    st.integers(1, 200),
    st.lists(st.integers(0, 30_000), max_size=80),
)
def test_rate_decides_as_another_library_does(quota: int, burst: int, gaps_ms: list[int]) -> None:
    ours, tat = Rate(quota, MINUTE, burst), 0
    other, theirs = OtherRate(quota, 60_000, burst=burst), GCRA()
    state, now_ms = theirs.initial([other]), START // 1000
    for gap in gaps_ms:
        now_ms += gap
        asked = gcra.step(ours, tat, now_ms * 1000)
        state, decision = theirs.step([other], state, now_ms, 1)
        assert (asked.wait == 0) == decision.allowed
        assert -(-asked.wait // 1000) == (decision.retry_after_ms or 0)
        if not asked.wait:
            tat = asked.tat


@given(rates, gaps)
def test_rate_admits_no_more_than_burst_and_quota_in_a_window(rate: Rate, gaps: list[int]) -> None:
    tat, now, passed = 0, START, []
    for gap in gaps:
        now += gap
        asked = gcra.step(rate, tat, now)
        if not asked.wait:
            tat = asked.tat
            passed.append(now)
    for first in passed:
        assert sum(first <= at < first + rate.window for at in passed) <= rate.burst + rate.quota


def test_rate_gives_its_burst_and_then_one_at_a_time() -> None:
    rate, tat = Rate(10, MINUTE, 10), 0
    for _ in range(10):
        asked = gcra.step(rate, tat, START)
        assert asked.wait == 0
        tat = asked.tat
    assert gcra.step(rate, tat, START).wait == 6 * SECOND
    assert gcra.read(rate, tat, START) == (0, 6 * SECOND, MINUTE)


def test_rate_under_load_earns_more_slowly_and_never_stops() -> None:
    once = Rate(10, MINUTE, 1)
    tat = gcra.step(once, 0, START, share=500).tat
    assert gcra.step(once, tat, START, share=500).wait == 12 * SECOND
    spent = 0
    for _ in range(10):
        spent = gcra.step(Rate(10, MINUTE, 10), spent, START).tat
    # What has been used up does not come back because the load rises.
    assert gcra.read(Rate(10, MINUTE, 10), spent, START, share=500).remaining == 0


def test_rate_takes_back_what_is_refunded() -> None:
    rate = Rate(7, MINUTE, 7)
    tat = gcra.step(rate, 0, START, share=300).tat
    assert gcra.refunded(rate, tat, share=300) == START * 7


def test_rate_of_nothing_is_no_rate() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Rate(0, MINUTE, 1)
    with pytest.raises(ValueError, match="never pass"):
        gcra.step(Rate(1, MINUTE, 1), 0, START, cost=2)
