"""A value that watchers share is made once an interval, and never without them."""

import pytest

from bitinglip.telemetry.shared import Shared


def test_shared_value_is_made_once_an_interval_for_all_watchers() -> None:
    now, made = [100.0], list[float]()

    def make() -> int:
        made.append(now[0])
        return len(made)

    shared: Shared[int] = Shared(1.0, clock=lambda: now[0])
    assert not made
    assert [shared.get(make) for _ in range(3)] == [1, 1, 1]
    now[0] += 0.4
    assert shared.get(make) == 1
    assert shared.seconds_left == pytest.approx(0.6)
    now[0] += shared.seconds_left
    assert [shared.get(make) for _ in range(3)] == [2, 2, 2]
    now[0] += 60
    assert shared.seconds_left == 0
    assert shared.get(make) == 3
