"""Rates in tokens under a clock of the test: what is taken, and what comes back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.access.limits.gcra import SECOND
from bitinglip.access.limits.store import MemoryStore
from bitinglip.access.limits.token_rates import TokenRates
from bitinglip.access.usage.amounts import Amounts
from bitinglip.access.usage.meter import Meter, Reservation
from bitinglip.access.usage.quotas import Plans, parse_quotas
from bitinglip.errors import QuotaExceeded, RateLimitExceeded
from bitinglip.settings.limits import Limits

PER_MINUTE = 600  #: ten a second


class Desk:
    """Holds a meter whose keys have a rate in tokens; its clock stands still."""

    def __init__(self, per_minute: int | None = PER_MINUTE, **quotas: Any) -> None:
        self.now = 10**12
        limits = Limits.model_validate({"tiers": {"free": {"tokens_per_minute": per_minute}}})
        plan = Plans(limits).of("free", parse_quotas(quotas))
        store = MemoryStore()
        self.rates = TokenRates(limits, lambda _key: "free", store, clock=lambda: self.now)
        self.meter = Meter(lambda _key: plan, rates=self.rates)

    def reserve(self, tokens: int, **how: Any) -> Reservation:
        return self.meter.reserve("k", "m", lambda: (1, tokens, 0, 0, 0), **how)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        self.meter.settle(reservation, Amounts(1, 0, tokens))

    def left(self) -> int:
        reading = self.rates.read("k")
        assert reading is not None
        return reading.remaining


def test_rate_in_tokens_gives_back_what_was_not_used() -> None:
    desk = Desk()
    first = desk.reserve(400)
    assert desk.left() == 200
    with pytest.raises(RateLimitExceeded) as refused:
        desk.reserve(300)
    assert refused.value.details == {"violated_policies": ["tokens"], "retry_after_ms": 10_000}
    assert (refused.value.retry_after, desk.left()) == (10, 200)
    desk.settle(first, 100)
    desk.settle(first, 100)  # once
    assert desk.left() == 500
    desk.settle(desk.reserve(300), 310)  # more than it said
    assert desk.left() == 190


def test_rate_in_tokens_passes_one_that_may_use_more_than_all_of_it() -> None:
    desk = Desk()
    whole = desk.reserve(1_000_000)
    assert desk.left() == 0
    desk.settle(whole, 50)
    assert desk.left() == 550
    with pytest.raises(RateLimitExceeded) as refused:
        desk.reserve(1_000_000)
    assert refused.value.retry_after == 5
    desk.now += 5 * SECOND
    desk.reserve(1_000_000)


def test_rate_in_tokens_is_not_taken_where_a_quota_refuses() -> None:
    desk = Desk(daily={"requests": 1})
    desk.settle(desk.reserve(10), 10)
    with pytest.raises(QuotaExceeded):
        desk.reserve(10)
    assert desk.left() == 590


def test_quota_is_not_reserved_where_the_rate_in_tokens_refuses() -> None:
    desk = Desk(daily={"tokens": 10_000})
    desk.reserve(600)
    with pytest.raises(RateLimitExceeded):
        desk.reserve(600)
    (state,) = desk.meter.read("k")
    assert state.reserved == 600


def test_rate_in_tokens_does_not_bound_other_kinds_nor_what_was_admitted() -> None:
    desk = Desk()
    desk.reserve(600)
    desk.meter.reserve("k", "m", lambda: (1, 0, 10**6, 0, 0))
    again = desk.reserve(5, admitted=True)
    desk.settle(again, 5)
    assert desk.left() == 0
    free = Desk(None)
    free.settle(free.reserve(10**9), 10**9)
    assert free.rates.headers("k") == ()


@given(st.lists(st.tuples(st.integers(0, 700), st.floats(0, 1), st.integers(0, 30)), max_size=50))
def test_rate_in_tokens_holds_in_the_long_run_and_passes_after_retry_after(
    requests: list[tuple[int, float, int]],
) -> None:
    desk, used = Desk(), 0
    began = desk.now
    for tokens, share, pause in requests:
        try:
            reservation = desk.reserve(tokens)
        except RateLimitExceeded as refused:
            desk.now += round((refused.retry_after or 0) * SECOND)
            reservation = desk.reserve(tokens)
        desk.now += pause * SECOND // 10
        spent = int(min(tokens, PER_MINUTE) * share)
        desk.settle(reservation, spent)
        used += spent
        assert used <= PER_MINUTE + PER_MINUTE * (desk.now - began) // (60 * SECOND)
