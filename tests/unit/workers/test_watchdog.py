"""The watchdog counts its own looks."""

from typing import Any, cast

import pytest

from tests.support.pool_harness import fake
from workers.protocol import Load, Ready
from workers.watchdog import Watchdog
from workers.worker import Worker

DOG = Watchdog(heartbeat_timeout=2, load_timeout=4)


def worker(state: str, spec: Load | None = None, **ready: Any) -> Worker:
    made = Worker(cast("Any", None), state, spec=spec)
    made.ready = Ready(slots=1, **ready) if ready else None
    return made


def looks(one: Worker, dog: Watchdog = DOG) -> float:
    """Seconds that the watchdog has counted when it ends the worker."""
    for number in range(1, 1000):
        if dog.look(one):
            return number * dog.interval
    raise AssertionError("it is never ended")


def test_silence_ends_a_worker_after_the_heartbeat_timeout() -> None:
    assert looks(worker("ready")) == 2 + DOG.interval
    assert looks(worker("draining")) == 2 + DOG.interval


def test_silence_is_forgotten_when_the_worker_speaks() -> None:
    one = worker("ready")
    for _ in range(100):
        assert DOG.look(one) is None
        one.silence = 0.0


def test_silence_may_last_as_long_as_a_step_of_the_engine() -> None:
    assert looks(worker("ready", step_timeout=10.0)) == 10 + DOG.interval
    assert looks(worker("ready", step_timeout=1.0)) == 2 + DOG.interval


def test_cancelled_job_that_goes_on_ends_its_worker_however_much_it_says() -> None:
    one = worker("ready")
    one.cancelled["a"] = one.cancelled["b"] = 0.0
    for number in range(1, 1000):
        one.silence = 0.0
        if number == 5:
            del one.cancelled["a"]
        if cause := DOG.look(one):
            break
    assert (number * DOG.interval, cause) == (8.5, "did not end a cancelled job within 8 s")


def test_cancelled_job_may_take_some_of_the_longest_steps() -> None:
    one = worker("ready", step_timeout=10.0)
    one.cancelled["a"] = 0.0
    for _ in range(80):
        one.silence = 0.0
        assert DOG.look(one) is None
    one.silence = 0.0
    assert DOG.look(one) == "did not end a cancelled job within 40 s"


def test_load_ends_after_the_load_timeout_however_much_it_says() -> None:
    one = worker("loading", fake())
    assert DOG.look(one) is None
    assert looks(one) == 4
    assert DOG.look(one) == "did not load within 4 s"


@pytest.mark.parametrize("state", ["starting", "warm"])
def test_spare_waits_for_its_model_as_long_as_it_has_to(state: str) -> None:
    one = worker(state)
    assert all(DOG.look(one) is None for _ in range(100))
    one.spec = fake()
    assert looks(one) == 4 + DOG.interval
