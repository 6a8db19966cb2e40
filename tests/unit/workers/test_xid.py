"""The faults that cards report by themselves (Xid): found, named, and told with what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import machines
from tests.support.machines import Machine, lose
from tests.support.nvml import NVMLError, StandInNvml
from workers.devices import Report
from workers.devices.xid import meaning_of, sentence


def test_xid_of_a_card_is_told_once_with_the_card_that_reports_it(tmp_path: Path) -> None:
    machine = machines.two_cards()
    devices = machine.devices(tmp_path)
    devices.read()
    assert devices.take_reports() == []
    second = machine.nvml.cards[1]
    machine.nvml.reports.extend([(second, 31), (second, 63), (machine.nvml.cards[0], 79)])
    devices.read()
    told = [Report("1", 31), Report("1", 63), Report("0", 79)]
    assert [*devices.take_reports(), *devices.take_reports()] == told
    lose(machine, 1)
    for _ in range(2):  # a new connection is watched as the first was
        machine.clock += 6
        devices.read()
    machine.nvml.reports.append((machine.nvml.cards[0], 48))
    devices.read()
    assert devices.take_reports() == [Report("0", 48)]
    devices.close()


@pytest.mark.parametrize("make", [machines.wsl, machines.gb10, machines.mig])
def test_xid_that_a_machine_does_not_tell_is_said_and_stops_nothing(
    make: Callable[[], Machine], tmp_path: Path
) -> None:
    devices = make().devices(tmp_path)
    assert "reports no faults by itself (Xid)" in (devices.list()[0].note or "")
    assert "0" in devices.read() or "MIG-a" in devices.read()
    devices.close()


def test_xid_is_not_read_from_a_driver_without_event_sets(tmp_path: Path) -> None:
    machine = machines.two_cards()
    machine.nvml.has_events = False
    devices = machine.devices(tmp_path)
    assert {"0", "1"} <= devices.read().keys()
    assert all("(Xid)" in (each.note or "") for each in devices.list() if each.kind == "cuda")
    devices.close()


def test_xid_is_told_in_words_with_what_to_do() -> None:
    for number in range(200):
        told, found = sentence(number), meaning_of(number)
        assert told.startswith("The card reports ")
        assert f"Xid {number} " in told
        assert told.endswith(".")
        assert found.blame == "note" or found.advice or found.blame == "program"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ((3, 1, 0, 0), None),
        ((0, 1, 1, 0), "at its next restart"),
        ((0, 1, 1, 1), "should be replaced"),
        (NVMLError(StandInNvml.NVML_ERROR_NOT_SUPPORTED), None),
    ],
)
def test_memory_that_a_card_could_not_replace_is_told_of(
    rows: Any, told: str | None, tmp_path: Path
) -> None:
    machine = machines.two_cards()
    machine.nvml.cards[0].rows = rows
    devices = machine.devices(tmp_path)
    first, second, _ = devices.list()
    assert first.note is None if told is None else told in (first.note or "")
    assert (first.condition.state, second.note) == ("well", None)
    devices.close()
