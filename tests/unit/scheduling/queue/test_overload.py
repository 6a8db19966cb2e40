"""Overload: its measure, and which tiers lose their limits first."""

from typing import Any

import pytest

from bitinglip import errors
from bitinglip.scheduling.dispatch import admission
from bitinglip.scheduling.dispatch.balancer import Balancer
from bitinglip.scheduling.dispatch.model_queue import InFlightJob, ModelQueue
from bitinglip.scheduling.queue.fair_queue import FairQueue, FairShare
from bitinglip.scheduling.queue.overload import OverloadController, Pressure
from bitinglip.scheduling.queue.priority import Priority, RequestPriority, priority_of, tier_of
from bitinglip.scheduling.queue.service_time import ServiceTime
from bitinglip.settings import Settings
from tests.support.in_flight import entry

TOP = 3


def under(value: float) -> OverloadController:
    found = OverloadController()
    found.value = value
    return found


def model_queue(**waiting: int) -> ModelQueue:
    """Return a model queue with so many jobs waiting of each key."""
    queue: FairQueue[InFlightJob] = FairQueue(10.0)
    for key, count in waiting.items():
        for number in range(count):
            queue.push(entry(f"{key}{number}"), FairShare(key), 1.0, 0.0)
    return ModelQueue("m", queue, Balancer())


def check(
    priority: Priority,
    waiting: int | ModelQueue,
    busy: float = 0.0,
    of_key: int = 0,
    most: int = 8,
    **load: Any,
) -> None:
    """For a request of the key "k", of which ``waiting`` wait if it is a number."""
    admission.check(
        priority,
        "k",
        model_queue(k=waiting) if isinstance(waiting, int) else waiting,
        of_key=of_key,
        most_waiting=most,
        overload=under(busy),
        top_rank=TOP,
        **{"slots": 4, **load},
    )


@pytest.mark.parametrize(
    "pressure", [Pressure(lag_seconds=0.25), Pressure(wait=1), Pressure(fill=1), Pressure(memory=1)]
)
def test_overload_of_one_pressure_alone_is_full(pressure: Pressure) -> None:
    found = OverloadController()
    for _ in range(30):
        found.observe(pressure)
    assert found.value == pytest.approx(1.0, abs=0.01)
    assert found.sheds_batch
    for _ in range(30):
        found.observe(Pressure())
    assert found.value == pytest.approx(0.0, abs=0.01)


def test_overload_needs_more_than_one_bad_moment() -> None:
    found = OverloadController()
    found.observe(Pressure(lag_seconds=5.0))
    assert not found.sheds_batch


def test_overload_lowers_the_limits_of_lower_tiers_first_and_most() -> None:
    assert [under(0.5).share(rank, TOP) for rank in range(4)] == [1.0, 1.0, 1.0, 1.0]
    assert [under(1.0).share(rank, TOP) for rank in range(4)] == [0.25, 0.5, 0.75, 1.0]
    shares = [under(0.75).share(rank, TOP) for rank in range(4)]
    assert shares == sorted(shares)


def test_overload_of_some_seconds_leaves_the_rates_alone() -> None:
    found = OverloadController()
    for _ in range(10):  # five seconds
        found.observe(Pressure(lag_seconds=5.0))
    assert found.share(0, TOP) < 1
    assert found.sustained_share(0, TOP) == 1
    for _ in range(60):
        found.observe(Pressure(lag_seconds=5.0))
    assert found.sustained_share(0, TOP) < found.sustained_share(2, TOP) < 1
    assert found.sustained_share(TOP, TOP) == 1


def test_admission_refuses_when_the_queue_is_full_and_says_when_to_retry() -> None:
    check(Priority(), 7)
    with pytest.raises(errors.QueueFull) as refused:
        check(Priority(), 8)
    assert refused.value.retry_after == 1.0


@pytest.mark.parametrize(
    ("eta", "told"), [(270.0, 270.0), (0.1, 1.0), (4000.0, 600.0), (None, 1.0)]
)
def test_admission_tells_to_retry_once_the_model_is_loaded(eta: float | None, told: float) -> None:
    with pytest.raises(errors.QueueFull) as refused:
        check(Priority(), 8, slots=0, load_eta=lambda: eta)
    assert refused.value.retry_after == told


def test_admission_under_overload_shortens_the_queue_of_the_lowest_tier() -> None:
    with pytest.raises(errors.QueueFull):
        check(Priority(rank=0), 2, busy=1.0)
    check(Priority(rank=3), 7, busy=1.0)


def test_admission_keeps_places_free_beside_the_backlog_of_one_key() -> None:
    with pytest.raises(errors.QueueFull):
        check(Priority(), model_queue(k=240), most=256)
    check(Priority(), model_queue(heavy=240), most=256)
    check(Priority(), model_queue(heavy=255), most=256)
    with pytest.raises(errors.QueueFull):
        check(Priority(), model_queue(heavy=240, k=1), most=256)


def test_admission_under_overload_counts_another_key_for_no_more_than_this_key_has() -> None:
    check(Priority(rank=0), model_queue(heavy=240), busy=1.0, most=256)  # 64 places for this tier
    check(Priority(rank=0), model_queue(heavy=200, k=31), busy=1.0, most=256)
    with pytest.raises(errors.QueueFull):
        check(Priority(rank=0), model_queue(heavy=200, k=32), busy=1.0, most=256)
    many = {f"light{number}": 1 for number in range(64)}
    with pytest.raises(errors.QueueFull):
        check(Priority(rank=0), model_queue(**many), busy=1.0, most=256)
    check(Priority(rank=1), model_queue(**many), busy=1.0, most=256)


def test_admission_bounds_what_one_key_may_queue() -> None:
    check(Priority(max_waiting=2), 3, of_key=1)
    with pytest.raises(errors.QueueFull, match="of this key"):
        check(Priority(max_waiting=2), 3, of_key=2)


def test_admission_refuses_low_priority_first() -> None:
    check(Priority(batch=True), 0, busy=0.5)
    with pytest.raises(errors.Overloaded):
        check(Priority(batch=True), 0, busy=0.9)


def test_priority_does_not_pass_the_next_tier() -> None:
    tiers = Settings().limits.tiers
    steps: tuple[RequestPriority, ...] = ("low", "normal", "high")
    assert [priority_of(tiers.free, step).level for step in steps] == [-1, 0, 1]
    assert priority_of(tiers.pro).level == 2
    assert tier_of(tiers, "unheard of") is tiers.free


def test_admission_tells_the_eta_once_it_is_known() -> None:
    pace = ServiceTime()
    assert pace.wait(3, 4) is None
    pace.ended(2.0)
    assert pace.wait(7, 4) == pytest.approx(4.0)
    assert pace.wait(7, 0) is None
