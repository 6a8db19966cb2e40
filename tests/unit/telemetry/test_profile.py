"""A profile says where threads are, and nothing of what they hold."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitinglip.telemetry import profile
from bitinglip.telemetry.profile import Profile, Profiler, Profiling
from tests.support.wait import eventually


def stand_still(ended: threading.Event) -> None:
    secret = "blk_live_of-somebody"
    ended.wait()
    assert secret


@pytest.fixture
def standing() -> Iterator[threading.Event]:
    ended = threading.Event()
    thread = threading.Thread(target=stand_still, args=[ended], name="a;thread")
    thread.start()
    yield ended
    ended.set()
    thread.join()


@pytest.mark.usefixtures("standing")
def test_profile_finds_where_a_thread_stands() -> None:
    taken = Profiler().take(0.1, threading.Event())
    assert taken.samples > 0
    found = [stack for stack in taken.stacks if stack[0] == "a,thread"]
    assert any(each.startswith(f"{__name__}.stand_still:") for each in found[0])
    for shown in (taken.folded(), str(taken.speedscope())):
        assert "stand_still" in shown
        assert "of-somebody" not in shown
        assert str(Path(profile.__file__).parent) not in shown


def test_profile_of_speedscope_has_one_profile_for_each_thread() -> None:
    taken = Profile(1.0, 3, {("main", "a", "b"): 2, ("main", "a"): 1, ("other", "c"): 3})
    shown = taken.speedscope()
    assert [each["name"] for each in shown["profiles"]] == ["other", "main"]
    names = [each["name"] for each in shown["shared"]["frames"]]
    main = shown["profiles"][1]
    assert [[names[each] for each in stack] for stack in main["samples"]] == [["a", "b"], ["a"]]
    assert main["endValue"] == sum(main["weights"]) == pytest.approx(1.0)
    assert taken.folded().splitlines() == ["other;c 3", "main;a;b 2", "main;a 1"]


@pytest.mark.usefixtures("standing")
def test_profile_holds_a_bounded_number_of_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_MOST_STACKS", 0)
    taken = Profiler().take(0.05, threading.Event())
    assert all(len(stack) == 1 for stack in taken.stacks)


def test_profile_is_taken_one_at_a_time_and_ends_when_told() -> None:
    profiler, stop = Profiler(), threading.Event()
    thread = threading.Thread(target=profiler.take, args=[60.0, stop])
    thread.start()
    try:
        eventually(profiler._running.locked)
        with pytest.raises(Profiling):
            profiler.take(1.0, stop)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
