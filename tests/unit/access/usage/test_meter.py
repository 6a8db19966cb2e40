"""The meter under a clock of the test: what requests reserve, and what is charged in the end."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.access.usage.amounts import MILLION, NAMES, REQUESTS, TOKENS, Amounts, Units
from bitinglip.access.usage.meter import Meter, Reservation
from bitinglip.access.usage.quotas import Plans, parse_quotas
from bitinglip.errors import QuotaExceeded
from bitinglip.settings.limits import Limits

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0
#: what the request that takes the last of a quota may use beyond it, by unit
OVER = (0, 60, 60 * MILLION, 60 * MILLION, 60 * MILLION)


class Desk:
    """Holds a meter whose keys all have the quotas of the test, and whose clock stands still."""

    def __init__(self, now: float = NOON, **quotas: Any) -> None:
        self.now = now
        plan = Plans(Limits()).of("free", parse_quotas(quotas))
        self.meter = Meter(lambda _key: plan, clock=lambda: self.now)

    def reserve(self, *, tokens: int = 1, key: str = "k", **how: Any) -> Reservation:
        return self.meter.reserve(key, "m", lambda: estimate(tokens), **how)

    def settle(self, reservation: Reservation, tokens: int = 0) -> None:
        self.meter.settle(reservation, Amounts(1, 0, tokens))

    def use(self, tokens: int) -> None:
        self.settle(self.reserve(tokens=tokens), tokens)

    def used(self, name: str = "daily.tokens", key: str = "k") -> tuple[int, int]:
        """Return what is used of a quota, and what is reserved."""
        state = next(each for each in self.meter.read(key) if each.quota.name == name)
        return state.used, state.reserved


def estimate(tokens: int) -> Units:
    return 1, tokens, 0, 0, 0


def refusal(desk: Desk, **how: Any) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as refused:
        desk.reserve(**how)
    return refused.value


def test_quota_refuses_with_what_is_used_and_when_it_resets() -> None:
    desk = Desk(daily={"tokens": 100}, monthly={"tokens": 150})
    desk.use(100)
    error = refusal(desk)
    assert error.details == {
        "quota": "daily.tokens",
        "limit": 100,
        "used": 100,
        "reserved": 0,
        "resets_at": "2026-11-28T00:00:00Z",
    }
    assert (error.retry_after, error.should_retry) == (12 * HOUR, False)
    desk.now += 12 * HOUR
    desk.use(50)
    error = refusal(desk)  # the day has something left, the month has not
    assert (error.details["quota"], error.details["resets_at"]) == (
        "monthly.tokens",
        "2026-12-01T00:00:00Z",
    )
    assert error.retry_after == 3 * 24 * HOUR
    assert desk.meter.exhausted("k", [TOKENS]) is not None
    assert desk.meter.exhausted("k", [REQUESTS]) is None
    desk.now += 3 * 24 * HOUR
    desk.use(1)
    assert (desk.used(), desk.used("monthly.tokens")) == ((1, 0), (1, 0))


def test_quota_of_the_longest_wait_is_told_where_several_refuse() -> None:
    desk = Desk(daily={"requests": 0}, monthly={"requests": 0})
    assert refusal(desk).details["quota"] == "monthly.requests"


def test_quota_of_another_unit_does_not_refuse() -> None:
    desk = Desk(daily={"megapixels": 0, "audio_seconds": 0})
    desk.use(1_000_000)


def test_quota_lets_at_most_one_request_over_it() -> None:
    desk = Desk(daily={"tokens": 100})
    held = [desk.reserve(tokens=30) for _ in range(4)]
    assert refusal(desk, tokens=1).details["reserved"] == 120
    for each in held:
        desk.settle(each, 30)
    assert desk.used() == (120, 0)


def test_quota_that_running_requests_reserve_comes_back_at_their_end() -> None:
    desk = Desk(daily={"tokens": 100})
    first = desk.reserve(tokens=100)
    refused = refusal(desk)
    assert "its running requests reserve 100" in refused.message
    desk.settle(first, 2)
    desk.meter.settle(first, Amounts(1, 0, 50))  # a second end changes nothing
    assert desk.used() == (2, 0)
    desk.use(98)
    assert desk.used() == (100, 0)


def test_quota_does_not_refuse_what_an_earlier_run_of_the_server_admitted() -> None:
    desk = Desk(daily={"requests": 1})
    held = [desk.reserve(), desk.reserve(admitted=True)]
    for each in held:
        desk.settle(each, 5)
    assert desk.used("daily.requests") == (2, 0)


def test_quota_of_the_day_and_of_the_month_ends_with_them() -> None:
    last_second = datetime(2027, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    desk = Desk(last_second, daily={"tokens": 5}, monthly={"tokens": 100})
    desk.use(5)
    running = desk.reserve(tokens=7, admitted=True)
    assert refusal(desk).retry_after == 1
    desk.now += 1
    desk.settle(running, 7)  # it is of the day in which it ended
    assert (desk.used(), desk.used("monthly.tokens")) == ((7, 0), (7, 0))
    days = {day: row[2] for (_, _, day), row in desk.meter.take_rows().items()}
    assert days == {"2027-12-31": 5, "2028-01-01": 7}


def test_quota_is_not_given_again_by_a_clock_that_is_set_back_a_little() -> None:
    midnight = datetime(2026, 11, 28, tzinfo=UTC).timestamp()
    desk = Desk(midnight + 1, daily={"tokens": 5})
    desk.use(5)
    desk.now = midnight - 60
    assert refusal(desk).details["resets_at"] == "2026-11-29T00:00:00Z"
    assert not desk.meter.stale
    desk.now = midnight - 3 * HOUR  # it was wrong by hours: the day is another one
    desk.use(5)
    assert desk.meter.stale


def test_quota_of_a_day_is_spent_though_the_clock_is_set_back_by_hours_within_it() -> None:
    desk = Desk(datetime(2026, 11, 28, 15, tzinfo=UTC).timestamp(), daily={"tokens": 5})
    desk.use(5)
    desk.now -= 14 * HOUR
    assert refusal(desk).details["resets_at"] == "2026-11-29T00:00:00Z"
    assert (desk.used(), desk.meter.stale) == ((5, 0), False)


def test_quota_counts_start_from_what_is_written_and_what_is_not_yet() -> None:
    desk = Desk(daily={"tokens": 50}, monthly={"tokens": 500})
    desk.use(4)
    desk.meter.restore({"k": Amounts(1, 10, 10)}, {"k": Amounts(9, 100, 100), "x": Amounts(1)})
    assert (desk.used(), desk.used("monthly.tokens")) == ((24, 0), (204, 0))


def test_charge_of_a_task_is_written_once_its_end_is() -> None:
    desk = Desk(daily={"tokens": 50})
    first, second = desk.reserve(recorded=False), desk.reserve(recorded=False)
    desk.settle(first, 3)
    assert (desk.used(), desk.meter.take_rows()) == ((3, 1), {})
    desk.meter.record(first)
    desk.meter.record(first)
    desk.meter.record(second)  # it was cancelled, and its worker tells what it did later
    assert list(desk.meter.take_rows().values()) == [[1, 0, 3, 0, 0, 0]]
    desk.settle(second, 4)
    assert list(desk.meter.take_rows().values()) == [[1, 0, 4, 0, 0, 0]]


def test_seconds_of_devices_are_expected_as_they_were_before() -> None:
    desk = Desk(daily={"gpu_seconds": 3})

    def ask() -> Reservation:
        expected = desk.meter.expected_gpu("m")
        return desk.meter.reserve("k", "m", lambda: (1, 0, 0, 0, expected))

    held = [ask() for _ in range(3)]  # a second each, as long as nothing is known
    with pytest.raises(QuotaExceeded):
        ask()
    for each in held:
        desk.meter.settle(each, Amounts(1, gpu_us=MILLION // 2))
    assert desk.used("daily.gpu_seconds") == (3 * MILLION // 2, 0)
    assert desk.meter.expected_gpu("m") == MILLION // 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.lists(st.integers(0, 60), min_size=5, max_size=5),
            st.floats(0, 1),
            st.integers(0, 5),
        ),
        max_size=60,
    )
)
def test_quota_is_never_exceeded_by_more_than_one_request(
    requests: Sequence[tuple[str, list[int], float, int]],
) -> None:
    """Each uses a part of what it reserved; some run while others come."""
    limits = (20, 200, 200, 200, 200)
    bounds = dict(zip(NAMES, limits, strict=True))
    plan = Plans(Limits()).of("free", parse_quotas({"daily": bounds}))
    most = [quota.limit + over for quota, over in zip(plan, OVER, strict=True)]
    meter = Meter(lambda _key: plan, clock=lambda: NOON)
    running: list[tuple[Reservation, Units]] = []
    charged: dict[str, list[int]] = {"a": [0] * 5, "b": [0] * 5}

    def end(count: int) -> None:
        for reservation, used in running[:count]:
            meter.settle(reservation, Amounts(used[0], 0, *used[1:]))
            sums = charged[reservation.key_id]
            charged[reservation.key_id] = [a + b for a, b in zip(sums, used, strict=True)]
        del running[:count]

    for key, asked, share, ending in requests:
        wanted: Any = (1, asked[1], *(each * MILLION for each in asked[2:]))
        used: Any = (1, *(int(each * share) for each in wanted[1:]))
        with suppress(QuotaExceeded):
            running.append((meter.reserve(key, "m", partial(tuple, wanted)), used))
        end(ending)
    end(len(running))
    for key, sums in charged.items():
        assert all(used <= limit for used, limit in zip(sums, most, strict=True))
        assert [(each.used, each.reserved) for each in meter.read(key)] == [(n, 0) for n in sums]
    rows = {key: Amounts(*row).units for (key, _, _), row in meter.take_rows().items()}
    assert rows == {key: tuple(sums) for key, sums in charged.items() if any(sums)}
