"""Quotas of tiers and keys: what is accepted, and which of two counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.access.usage.amounts import NAMES
from bitinglip.access.usage.quotas import (
    PERIODS,
    Plans,
    described,
    parse_quotas,
    quotas_within,
)
from bitinglip.errors import InvalidRequest
from bitinglip.settings.limits import Limits

AMOUNTS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 50))
QUOTAS = st.dictionaries(st.sampled_from(PERIODS), AMOUNTS)


def limits_of(tier: str, own: dict[str, Any] | None, **tiers: Any) -> dict[str, int]:
    plans = Plans(Limits.model_validate({"tiers": tiers}))
    return {each.name: each.limit for each in plans.of(tier, parse_quotas(own))}


def test_quotas_of_tier_and_key_are_the_smaller_ones() -> None:
    pro = {"daily": {"tokens": 100, "megapixels": 1.5}, "monthly": {"requests": 7}}
    own = {"daily": {"tokens": 200, "megapixels": 0.25}, "monthly": {"audio_seconds": 2}}
    assert limits_of("pro", own, pro=pro) == {
        "daily.tokens": 100,
        "daily.megapixels": 250_000,
        "monthly.requests": 7,
        "monthly.audio_seconds": 2_000_000,
    }
    assert limits_of("free", None, pro=pro) == limits_of("operator", None, pro=pro) == {}


def test_quotas_without_a_period_are_of_the_day() -> None:
    given_flat = parse_quotas({"tokens": 5, "monthly": {"tokens": 9}})
    assert described(given_flat) == {"daily": {"tokens": 5}, "monthly": {"tokens": 9}}
    assert parse_quotas({"daily": None, "tokens": None}) is parse_quotas(None) is None


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"weekly": {"tokens": 1}}, "quotas.weekly"),
        ({"daily": {"words": 1}}, "quotas.daily.words"),
        ({"daily": {"tokens": 1.5}}, "quotas.daily.tokens"),
        ({"daily": {"requests": True}}, "quotas.daily.requests"),
        ({"daily": {"gpu_seconds": -0.1}}, "quotas.daily.gpu_seconds"),
        ({"monthly": {"gpu_seconds": float("nan")}}, "quotas.monthly.gpu_seconds"),
        ({"monthly": {"megapixels": 1e13}}, "quotas.monthly.megapixels"),
        ({"tokens": 1, "daily": {"tokens": 1}}, "quotas.daily.tokens"),
    ],
)
def test_quotas_that_are_not_valid_are_refused_by_name(wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_quotas(wrong)
    assert refused.value.param == param


@given(QUOTAS, QUOTAS)
def test_quotas_within_others_never_allow_more(asked: dict[str, Any], held: dict[str, Any]) -> None:
    own, other = parse_quotas(asked), parse_quotas(held)
    plans = Plans(Limits())
    mine = {each.name: each.limit for each in plans.of("free", own)}
    theirs = {each.name: each.limit for each in plans.of("free", other)}
    narrower = all(mine.get(name, float("inf")) <= limit for name, limit in theirs.items())
    assert quotas_within(own, other) == narrower
    assert parse_quotas(described(own)) == own
