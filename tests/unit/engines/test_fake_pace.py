"""The pace of the fake engine: so many tokens a second, and not all at once after a pause."""

from types import SimpleNamespace

import pytest

from workers.engines.fake import FakeEngine
from workers.protocol import FakeOptions, Load, Sampling, TextDelta, TextJob


def test_fake_engine_makes_up_for_no_time_in_which_the_machine_stood_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=1000.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    own_time = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr("workers.engines.fake.time", own_time)
    engine = FakeEngine()
    options = FakeOptions(tokens_per_second=100)
    engine.load(Load(model="echo", engine="fake", path="", fake=options), lambda _: None)
    sampling = Sampling(max_tokens=5000)
    engine.submit(engine.prepare(TextJob(id="j", prompt="a", sampling=sampling, stream=True)))

    def tokens_of(seconds: float) -> int:
        ends, count = clock.now + seconds, 0
        while clock.now < ends:
            count += sum(isinstance(event, TextDelta) for event in engine.step())
        return count

    assert tokens_of(2.0) == pytest.approx(200, abs=2)
    clock.now += 5.0  # the machine stood still
    assert tokens_of(1.0) == pytest.approx(100 + 25, abs=2)
