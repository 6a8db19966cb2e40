"""Admission under a clock of the test: what a request takes, and what it gets back."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.access.keys import Caller
from bitinglip.access.limits.admission import Admission, Admitted
from bitinglip.access.limits.gcra import FULL, SECOND
from bitinglip.access.limits.headers import duration
from bitinglip.access.limits.logins import FailedLogins
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.limits.store import Cell, Decision, MemoryStore
from bitinglip.access.scopes import Scope
from bitinglip.errors import ConcurrencyLimitExceeded, InvalidApiKey, RateLimitExceeded
from bitinglip.settings.limits import Limits

ITEM = re.compile(r'"([a-z-]+)"((?:;[a-z-]+=(?:[0-9]+|"[a-z-]+"))+)')
PATH = "/v1/completions"


class BrokenStore(MemoryStore):
    def take_now(
        self,
        cells: Sequence[Cell],
        now: int,  # noqa: ARG002
        *,
        cost: int = 1,  # noqa: ARG002
        share: int = FULL,  # noqa: ARG002
    ) -> Decision:
        raise OSError(cells[0].id)


class Desk:
    """Holds an admission whose clock stands still until the test moves it."""

    def __init__(self, share: float = 1.0, store: MemoryStore | None = None, **limits: Any) -> None:
        self.now = 10**12
        self.admission = Admission(
            Limits.model_validate(limits),
            per_key=60,
            share=lambda _rank: share,
            store=store,
            clock=lambda: self.now,
        )

    def ask(
        self, tier: str = "free", key: str = "k", kind: LimitClass = LimitClass.INFERENCE
    ) -> Admitted:
        caller = Caller(key, key, tier, frozenset({Scope.TEXT}))
        return asyncio.run(self.admission.enter(caller, kind, PATH))

    def pass_one(self, tier: str = "free", **how: Any) -> Admitted:
        """Ask for a request that has to be admitted, and end it."""
        admitted = self.ask(tier, **how)
        assert admitted.refusal is None
        self.admission.leave(admitted, refund=False)
        return admitted


def parsed(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> dict[str, dict[str, str]]:
    """Parse a list of strings with parameters, as Structured Fields have them."""
    found = {}
    for item in dict(headers)[name].decode().split(", "):
        match = ITEM.fullmatch(item)
        assert match, item
        found[match[1]] = dict(part.split("=") for part in match[2].split(";")[1:])
    return found


@given(
    st.lists(st.integers(0, 40 * SECOND), max_size=40),
    st.floats(0.01, 1),
    st.sampled_from(["free", "pro"]),
)
def test_admission_passes_exactly_after_retry_after(
    gaps: list[int], share: float, tier: str
) -> None:
    desk = Desk(share)
    for gap in gaps:
        desk.now += gap
        admitted = desk.ask(tier)
        if admitted.refusal is None:
            desk.admission.leave(admitted, refund=False)
            continue
        assert isinstance(admitted.refusal, RateLimitExceeded)
        wait = admitted.refusal.retry_after
        assert wait is not None
        for item in parsed(admitted.headers, b"ratelimit").values():
            assert int(item["t"]) <= -(-int(wait * 1000) // 1000)
        desk.now += round(wait * SECOND)
        desk.pass_one(tier)


def test_admission_of_tiers_is_the_contract_s() -> None:
    for tier, minute, hour, places in (("free", 10, 100, 2), ("pro", 100, 1000, 10)):
        desk = Desk()
        headers = desk.pass_one(tier).headers
        assert parsed(headers, b"ratelimit-policy") == {
            "minute": {"q": str(minute), "w": "60"},
            "hour": {"q": str(hour), "w": "3600"},
            "concurrent": {"q": str(places), "qu": '"concurrent-requests"'},
        }
        assert parsed(headers, b"ratelimit")["minute"]["r"] == str(minute - 1)
        for _ in range(minute - 1):
            desk.pass_one(tier)
        assert isinstance(desk.ask(tier).refusal, RateLimitExceeded)
    desk = Desk()
    asked = [desk.ask("operator") for _ in range(100)]
    assert all(each.refusal is None and each.headers == () for each in asked)
    held = [desk.ask("enterprise") for _ in range(51)]
    assert isinstance(held[-1].refusal, ConcurrencyLimitExceeded)


def test_admission_charges_nothing_where_no_place_is_free() -> None:
    desk = Desk()
    first, second, third = (desk.ask() for _ in range(3))
    assert isinstance(third.refusal, ConcurrencyLimitExceeded)
    assert dict(third.headers)[b"x-ratelimit-remaining-requests"] == b"8"
    desk.admission.leave(first, refund=True)
    desk.admission.leave(second, refund=True)
    assert desk.admission.in_flight == 0
    assert dict(desk.pass_one().headers)[b"x-ratelimit-remaining-requests"] == b"9"


def test_admission_gives_the_place_back_where_the_store_fails() -> None:
    desk = Desk(store=BrokenStore())
    with pytest.raises(OSError, match="k:minute"):
        desk.ask()
    assert desk.admission.in_flight == 0


def test_admission_of_light_routes_has_limits_of_its_own() -> None:
    desk = Desk(other_requests_per_minute=30)
    held = [desk.ask(kind=LimitClass.STREAM) for _ in range(3)]
    assert isinstance(held[2].refusal, ConcurrencyLimitExceeded)
    for number in range(28):  # two of 30 went to the streams
        left = dict(desk.pass_one(kind=LimitClass.LIGHT).headers)
        assert left[b"x-ratelimit-remaining-requests"] == b"%d" % (27 - number)
    refused = desk.ask(kind=LimitClass.LIGHT).refusal
    assert isinstance(refused, RateLimitExceeded)
    assert refused.details["violated_policies"] == ["other"]
    assert desk.ask("operator", kind=LimitClass.LIGHT).refusal is None


def test_admission_of_keys_is_apart_and_its_own_after_a_change_of_tier() -> None:
    desk = Desk(tiers={"free": {"burst": 1, "requests_per_hour": None}})
    desk.pass_one(key="a")
    desk.pass_one(key="b")
    refused = desk.ask(key="a")
    assert refused.refusal is not None
    assert refused.refusal.retry_after == 6
    better = desk.pass_one("pro", key="a")
    assert dict(better.headers)[b"x-ratelimit-remaining-requests"] < b"99"


def test_admission_caps_requests_at_once_of_every_class() -> None:
    desk = Desk(tiers={"free": {"concurrent_requests": None}})
    held = [desk.ask(kind=LimitClass.LIGHT) for _ in range(61)]
    refused = held.pop().refusal
    assert isinstance(refused, ConcurrencyLimitExceeded)
    assert refused.details["limit"] == 60
    for each in held:
        desk.admission.leave(each, refund=False)
    assert desk.admission.in_flight == 0


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0, b"0ms"),
        (119_001, b"120ms"),
        (999_999, b"1000ms"),
        (SECOND + 1, b"2s"),
        (360 * SECOND, b"6m0s"),
        (3661 * SECOND, b"1h1m1s"),
    ],
)
def test_reset_is_written_as_a_duration(microseconds: int, text: bytes) -> None:
    assert duration(microseconds) == text


def test_failed_logins_are_counted_by_address_in_a_bounded_table() -> None:
    now = 10**12
    logins, error = FailedLogins(2, clock=lambda: now), InvalidApiKey()

    def refused(address: str | None) -> bool:
        return logins.count(address, error) is not error

    assert [refused("10.0.0.1") for _ in range(4)] == [False, False, True, True]
    assert not refused("10.0.0.2")
    # One client has a whole network of IPv6; an address of the old kind is itself.
    assert [refused(f"2001:db8::{n}") for n in range(4)] == [False, False, True, True]
    assert not refused("2001:db8:0:1::1")
    assert refused("::ffff:10.0.0.1")
    assert not any(refused(None) for _ in range(10))
    for number in range(20_000):
        refused(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(logins) <= 10_000
    assert FailedLogins(None).count("10.0.0.1", error) is error
