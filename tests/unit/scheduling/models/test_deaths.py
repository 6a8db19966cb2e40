"""Causes of a worker's death: the request, memory, or the device."""

from collections.abc import Sequence

import pytest

from bitinglip.scheduling.models.deaths import RESTARTED_BY_OPERATOR, Death, Deaths
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.state import Replica
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Settings
from workers.devices import CPU, Device, Devices, Report
from workers.devices.xid import sentence
from workers.faults import FAULTS, RAM, Fault

GB = 1_000_000_000
CRASH = "exited with code 13"


class Reporting(Devices):
    """Simulates cards that report faults."""

    reports: tuple[Report, ...] = ()

    def take_reports(self) -> Sequence[Report]:
        taken, self.reports = self.reports, ()
        return taken


class Bench:
    """Simulates two cards and a clock that the test moves."""

    def __init__(self) -> None:
        self.devices = Reporting(fake=[("card", GB), ("other", GB)])
        self.deaths = Deaths(ResourceFacts(Settings(), self.devices, Footprints()))
        self.now = 1000.0

    def die(
        self, model: str, device: str = "fake0", *, fault: Fault | None = None, cause: str = CRASH
    ) -> Death:
        replica = Replica(model, 0, {device: 1}, 0.0)
        return self.deaths.judge(replica, fault, cause, self.now)

    def report(self, number: int, device: str = "fake0") -> None:
        """Let a card report an Xid, and the next look find it."""
        self.devices.reports += (Report(device, number),)
        self.deaths.refresh(self.now)

    def device(self, name: str = "fake0") -> Device:
        return next(each for each in self.devices.list() if each.id == name)

    def state(self, name: str = "fake0") -> str:
        return self.device(name).condition.state


def test_death_is_blamed_on_the_request_unless_its_fault_says_otherwise() -> None:
    bench = Bench()
    assert bench.die("a").blame == "request"
    assert bench.die("b", "fake1", fault=FAULTS["context lost"]).blame == "request"
    assert bench.die("c", "fake1", fault=RAM).blame == "memory"
    assert bench.die("d", "fake1", fault=FAULTS["memory"]).blame == "memory"
    assert bench.die("e", "fake1", fault=FAULTS["unknown error"]).blame == "device"
    assert bench.die("f", "fake1", cause=RESTARTED_BY_OPERATOR).blame == "operator"


def test_death_of_several_workers_of_a_card_at_once_is_the_card_s() -> None:
    bench, undone = Bench(), []
    first = bench.die("a")
    first.undo.append(lambda: undone.append("a"))
    bench.now += 1.9
    assert bench.die("b").blame == "device"
    assert first.blame == "device"
    assert undone == ["a"]
    bench.now += 1.0
    bench.die("b")
    assert undone == ["a"]  # once


def test_death_beside_others_is_its_own_on_another_card_the_processor_or_later() -> None:
    bench = Bench()
    bench.die("a")
    assert bench.die("b", "fake1").blame == "request"
    assert bench.die("a").blame == "request"  # the same worker twice
    bench.now += 2.1
    assert bench.die("c").blame == "request"
    bench.die("d", CPU)
    assert bench.die("e", CPU).blame == "request"
    bench.die("f", "fake1", fault=RAM)
    bench.now += 2.1
    bench.die("g", "fake1", cause=RESTARTED_BY_OPERATOR)
    assert bench.die("h", "fake1").blame == "request"


def test_death_on_a_card_in_question_is_the_card_s() -> None:
    bench = Bench()
    bench.devices.mark("fake0", "doubtful", "The machine was suspended.", source="suspend")
    assert bench.die("a").blame == "device"
    assert bench.die("b", "fake1").blame == "request"


def test_device_is_doubtful_after_two_faults_in_ten_minutes() -> None:
    bench = Bench()
    bench.die("a", fault=FAULTS["unknown error"])
    bench.now += 601
    bench.die("a", fault=FAULTS["unknown error"])
    assert bench.state() == "well"
    bench.now += 599
    bench.die("b", fault=FAULTS["unknown error"])
    assert bench.state() == "doubtful"
    assert bench.device().condition.reason == FAULTS["unknown error"].sentence
    assert bench.state("fake1") == "well"


def test_device_is_doubtful_once_two_groups_have_died_on_it() -> None:
    bench = Bench()
    for _ in range(2):
        for model in "abc":
            bench.die(model, fault=FAULTS["context lost"] if model == "b" else None)
        bench.now += 60
        assert bench.state() == "doubtful" or bench.now < 1100
    assert "died at the same moment" in (bench.device().condition.reason or "")


def test_device_is_not_put_in_question_by_workers_that_told_no_fault() -> None:
    """Requests that crash workers of two models at once must not take the card from all models."""
    bench = Bench()
    for _ in range(9):
        assert [bench.die(model).blame for model in "ab"][1] == "device"
        bench.now += 30
    assert bench.state() == "well"
    assert bench.deaths.pause("b", bench.now) == 2


def test_device_is_doubtful_at_once_after_a_fault_that_leaves_no_doubt() -> None:
    bench = Bench()
    assert bench.deaths.load_failed(["fake0"], FAULTS["driver changed"], bench.now)
    assert bench.state() == "doubtful"
    assert not bench.deaths.load_failed(["fake1"], None, bench.now)
    assert not bench.deaths.load_failed(["fake1"], FAULTS["memory"], bench.now)
    assert not bench.deaths.load_failed([CPU], FAULTS["card lost"], bench.now)
    assert bench.state("fake1") == "well"


def test_device_is_tried_again_ten_minutes_after_it_was_put_in_question() -> None:
    bench = Bench()
    bench.deaths.load_failed(["fake0"], FAULTS["card lost"], bench.now)
    bench.now += 400
    bench.die("a")  # which is its fault too
    bench.now += 199
    bench.deaths.refresh(bench.now)
    assert bench.state() == "doubtful"
    bench.now += 1
    bench.deaths.refresh(bench.now)
    assert bench.state() == "well"


def test_device_that_others_have_put_in_question_is_left_to_their_judgement() -> None:
    bench = Bench()
    bench.devices.mark("fake0", "doubtful", "The machine was suspended.", source="suspend")
    for _ in range(4):
        assert bench.die("a", fault=FAULTS["unknown error"]).blame == "device"
        bench.now += 10
    bench.devices.clear("fake0", source="suspend")
    assert bench.state() == "well"


def test_pause_before_the_next_start_grows_with_the_deaths_that_are_excused() -> None:
    bench, pauses = Bench(), []
    for _ in range(9):
        bench.die("a", fault=RAM)
        pauses.append(bench.deaths.pause("a", bench.now))
        bench.now += 10
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert bench.deaths.pause("b", bench.now) == 0
    assert bench.deaths.pause("a", bench.now + 600) == 0


@pytest.mark.parametrize(
    ("number", "blame", "state"),
    [
        *((number, "request", "well") for number in (13, 31, 43, 45, 63, 999)),
        *((number, "device", "doubtful") for number in (48, 64, 74, 79, 95, 119, 120, 154)),
        (94, "device", "well"),  # the card's memory did it, to this program only
    ],
)
@pytest.mark.parametrize("comes", ["before", "after"])
def test_xid_tells_whether_the_request_or_its_card_ended_a_worker(
    number: int, blame: str, state: str, comes: str
) -> None:
    bench, undone = Bench(), list[str]()
    if comes == "before":
        bench.report(number)
    other = bench.die("a", "fake1")
    death = bench.die("a")
    death.undo.append(lambda: undone.append("a"))
    if comes == "after":
        bench.now += 4.0
        bench.report(number)
    assert (death.blame, bench.state()) == (blame, state)
    assert undone == (["a"] if (blame, comes) == ("device", "after") else [])
    assert (other.blame, bench.state("fake1")) == ("request", "well")
    if state == "doubtful":
        assert bench.device().condition.reason == sentence(number)


def test_xid_excuses_no_death_of_another_minute() -> None:
    bench = Bench()
    early = bench.die("a")
    bench.now += 60
    bench.report(94)
    bench.now += 6
    assert (early.blame, bench.die("b").blame) == ("request", "request")


def test_device_in_question_is_used_again_once_it_is_found_to_compute() -> None:
    bench = Bench()
    for wait in (30, 60, 120):  # each time it is given twice as long
        bench.report(48)
        assert (bench.state(), bench.deaths.due(bench.now + wait - 1)) == ("doubtful", [])
        bench.now += wait
        assert bench.deaths.due(bench.now) == ["fake0"]
        bench.deaths.computes("fake0")
        assert (bench.state(), bench.deaths.due(bench.now)) == ("well", [])
    bench.now += 601
    bench.report(48)
    assert bench.deaths.due(bench.now + 30) == ["fake0"]


def test_device_in_question_that_is_found_to_fail_stays_so_and_says_why() -> None:
    bench = Bench()
    bench.report(119)
    bench.now += 590
    bench.deaths.still_fails("fake0", "CUDA error: unknown error", bench.now)
    assert bench.deaths.due(bench.now) == []
    assert bench.deaths.due(bench.now + 30) == ["fake0"]
    bench.now += 599
    bench.deaths.refresh(bench.now)
    told = bench.device().condition.reason or ""
    assert told.startswith(sentence(119))
    assert told.endswith("does not compute on it, either (CUDA error: unknown error).")
    bench.deaths.computes("fake0")
    assert bench.state() == "well"
    bench.deaths.still_fails("fake0", "too late", bench.now)
    assert bench.state() == "well"


def test_device_that_fails_at_once_after_it_was_found_to_compute_is_in_question_again() -> None:
    bench = Bench()
    for _ in range(2):
        bench.die("a", fault=FAULTS["unknown error"])
        bench.now += 10
    bench.deaths.computes("fake0")
    bench.die("a", fault=FAULTS["unknown error"])
    assert bench.state() == "doubtful"
