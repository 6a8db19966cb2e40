"""Devices of a machine: real for the processor, made up for the driver."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from tests.support import machines
from tests.support.machines import GIB, Machine, MadeUpHost
from tests.support.nvml import NVMLError, StandInCard, StandInNvml
from workers.devices import WELL, Condition, Devices
from workers.devices import cards as cards_module
from workers.devices.cards import Cards
from workers.devices.host import Host
from workers.environment import worker_environment

LOST = NVMLError(StandInNvml.NVML_ERROR_GPU_IS_LOST)
NOT_SUPPORTED = NVMLError(StandInNvml.NVML_ERROR_NOT_SUPPORTED)
ON_CPU = "models run on the CPU"


def process(pid: int, used: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def two() -> StandInNvml:
    return StandInNvml(StandInCard(uuid="GPU-aa"), StandInCard(name="NVIDIA L4", uuid="GPU-ab"))


def ids(visible: str | None, nvml: StandInNvml | None = None) -> list[str]:
    return [card.id for card in Cards.find(visible, nvml or two()).list]


def test_nvml_stand_in_has_the_names_of_the_real_one() -> None:
    names = [name for name in vars(StandInNvml) if name.lower().startswith("nvml")]
    assert len(names) > 20
    for name in names:
        stands_for = getattr(pynvml, name)
        if name.startswith("NVML_"):
            assert stands_for == getattr(StandInNvml, name)


def test_cpu_is_a_device_with_most_of_the_ram() -> None:
    devices = Devices(host=Host())
    (cpu,) = devices.list()
    assert (cpu.id, cpu.kind) == ("cpu", "cpu")
    assert 0 < cpu.physical_bytes <= psutil.virtual_memory().total
    assert cpu.memory_bytes == cpu.physical_bytes * 80 // 100
    assert cpu.name
    devices.close()


def test_cpu_budget_can_be_set() -> None:
    (cpu,) = Devices(host=Host(), cpu_memory_bytes=1000).list()
    assert cpu.memory_bytes == 1000 < cpu.physical_bytes


def test_cpu_reading_tells_of_the_processes_asked_about() -> None:
    code = "held = b'x' * 50_000_000; print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        devices = Devices(host=Host())
        reading = devices.read([child.pid, 2**22 + 1, -1])["cpu"]
        child.communicate(b"\n")
    assert list(reading.processes) == [child.pid]
    assert 50_000_000 < reading.processes[child.pid] < 500_000_000
    assert 0 < reading.used_bytes <= devices.list()[0].physical_bytes


def test_cpu_utilisation_is_that_since_the_last_reading() -> None:
    devices = Devices(host=Host())
    assert devices.read()["cpu"].utilisation is None
    idle_or_busy = time.monotonic() + 60
    while (share := devices.read()["cpu"].utilisation) is None:
        assert time.monotonic() < idle_or_busy
    assert 0 <= share <= 1


def test_fake_devices_replace_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    devices = Devices.find([("big", 1000), ("small", 10)], cpu_memory_bytes=5)
    found = [(each.id, each.name, each.kind, each.memory_bytes) for each in devices.list()]
    assert found == [("fake0", "big", "fake", 1000), ("fake1", "small", "fake", 10)]
    readings = devices.read([os.getpid()])
    assert {name: reading.used_bytes for name, reading in readings.items()} == {
        "fake0": 0,
        "fake1": 0,
    }
    assert devices.note is not None
    devices.close()


def test_devices_end_with_the_cpu() -> None:
    devices = Devices.find()
    assert devices.list()[-1].id == "cpu"
    assert "cpu" in devices.read()
    devices.close()


@pytest.mark.parametrize(
    ("init", "note"),
    [
        (StandInNvml.NVML_ERROR_LIBRARY_NOT_FOUND, f"no NVIDIA driver: {ON_CPU}"),
        (StandInNvml.NVML_ERROR_DRIVER_NOT_LOADED, f"no NVIDIA driver: {ON_CPU}"),
        (18, f"the NVIDIA driver does not answer (error 18): {ON_CPU}"),
    ],
)
def test_driver_that_is_missing_leaves_no_cards_and_a_note(init: int, note: str) -> None:
    cards = Cards.find(None, StandInNvml(StandInCard(), init=init))
    assert (cards.list, cards.driver, cards.note) == ((), None, note)
    cards.close()


def test_devices_begin_with_the_cards_as_the_driver_tells_them() -> None:
    nvml = two()
    devices = Devices(Cards.find(None, nvml), Host())
    assert [(each.id, each.name, each.kind) for each in devices.list()[:2]] == [
        ("0", "NVIDIA H100", "cuda"),
        ("1", "NVIDIA L4", "cuda"),
    ]
    assert devices.list()[0].memory_bytes == devices.list()[0].physical_bytes == 80
    assert devices.driver is not None
    assert (devices.driver.version, devices.driver.cuda) == ("580.95", (13, 0))
    assert devices.note is None
    assert list(devices.read()) == ["0", "1", "cpu"]
    devices.close()
    devices.close()
    assert nvml.opened == 0
    assert list(devices.read()) == ["cpu"]


def test_card_reading_has_what_the_card_tells() -> None:
    told = [process(7, 3), process(7, 2), process(8, None), process(9, 1)]
    nvml = StandInNvml(StandInCard(processes=told))
    reading = Cards.find(None, nvml).read()["0"]
    assert (reading.used_bytes, reading.processes) == (8, {7: 5, 9: 1})
    assert (reading.utilisation, reading.temperature_c, reading.power_w) == (0.25, 41.0, 120.5)


def test_card_reading_is_none_where_the_card_tells_nothing() -> None:
    nvml = StandInNvml(
        StandInCard(
            processes=NOT_SUPPORTED,
            utilisation=NOT_SUPPORTED,
            temperature=NOT_SUPPORTED,
            milliwatts=NOT_SUPPORTED,
        )
    )
    reading = Cards.find(None, nvml).read()["0"]
    assert (reading.used_bytes, reading.processes) == (8, {})
    assert (reading.utilisation, reading.temperature_c, reading.power_w) == (None, None, None)


@pytest.mark.parametrize(
    ("mask", "slowed_by"),
    [
        (0, ()),
        (0x1, ()),  # it has nothing to do
        (0x4, ("power limit",)),
        (0x8 | 0x40, ("heat",)),
        (0x8, ("heat or power supply",)),
        (0x20 | 0x80, ("heat", "power supply")),
        (NOT_SUPPORTED, ()),
    ],
)
def test_card_reading_says_what_keeps_the_clocks_down(mask: Any, slowed_by: tuple[str]) -> None:
    cards = Cards.find(None, StandInNvml(StandInCard(clocks=mask)))
    assert cards.read()["0"].slowed_by == slowed_by


@pytest.mark.parametrize(
    ("lanes", "told"),
    [((4, 16), "4 of its 16 PCIe lanes"), ((16, 16), None), (NOT_SUPPORTED, None)],
)
def test_card_in_a_narrow_slot_is_told_of(lanes: Any, told: str | None) -> None:
    devices = Devices(Cards.find(None, StandInNvml(StandInCard(lanes=lanes))))
    note = devices.list()[0].note
    assert note is None if told is None else told in (note or "")
    devices.close()


@pytest.mark.parametrize(("display", "told"), [(0, True), (1, False)])
def test_driver_that_starts_slowly_where_nothing_keeps_it_is_told_of(
    display: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards_module, "_SLOW_START", 0.05)
    nvml = StandInNvml(StandInCard(display=display))
    nvml.waits_for = threading.Event()
    threading.Timer(0.2, nvml.waits_for.set).start()
    devices = Devices(Cards.find(None, nvml))
    assert ("enable nvidia-persistenced" in (devices.slow_start or "")) == told
    devices.close()
    quick = Devices(Cards.find(None, StandInNvml(StandInCard())))
    assert quick.slow_start is None
    quick.close()


def test_card_that_is_lost_is_left_out_of_the_reading_and_comes_back() -> None:
    nvml = two()
    cards = Cards.find(None, nvml)
    was, nvml.cards[0].memory = nvml.cards[0].memory, LOST
    assert list(cards.read()) == ["1"]
    nvml.cards[0].memory = was
    assert list(cards.read()) == ["0", "1"]


def test_card_that_is_lost_at_the_start_is_no_device_and_told_of() -> None:
    cards = Cards.find(None, StandInNvml(StandInCard(), StandInCard(memory=LOST)))
    assert [card.id for card in cards.list] == ["0"]
    assert cards.note == "these cards do not answer and are left out: 1 (error 15)"


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        (" 01 , 1", ["1"]),
        ("GPU-ab", ["GPU-ab"]),
        ("GPU-a", ["GPU-aa"]),
        ("GPU-ab,0", ["GPU-ab", "0"]),
        ("", []),
        ("-1", []),
        ("1,7,0", ["1"]),
        ("NoDevFiles", []),
        ("GPU-none", []),
    ],
)
def test_cards_are_only_those_that_are_visible(visible: str | None, found: list[str]) -> None:
    assert ids(visible) == found


def test_note_says_why_there_is_no_card() -> None:
    for nvml, visible, why in (
        (two(), "", "CUDA_VISIBLE_DEVICES='' leaves no card to us"),
        (StandInNvml(), None, "the NVIDIA driver shows no card"),
        (StandInNvml(StandInCard(instances=[])), None, "have no instances"),
    ):
        cards = Cards.find(visible, nvml)
        assert cards.list == ()
        assert cards.note is not None
        assert why in cards.note
        assert cards.note.endswith(ON_CPU)


def test_card_that_is_partitioned_is_its_instances() -> None:
    instances = [StandInCard(uuid="MIG-1"), None, StandInCard(uuid="MIG-2", utilisation=LOST)]
    nvml = StandInNvml(StandInCard(uuid="GPU-aa", instances=instances), StandInCard(uuid="GPU-b"))
    assert ids(None, nvml) == ["MIG-1", "MIG-2", "1"]
    assert ids("MIG-2", nvml) == ["MIG-2"]
    assert ids("GPU-aa", nvml) == ["MIG-1", "MIG-2"]
    assert Cards.find(None, nvml).read()["MIG-2"].utilisation is None


def test_cards_are_counted_by_workers_as_by_the_driver() -> None:
    environ = worker_environment({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, "6.1.0")
    assert environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_device_state_is_the_worst_that_any_source_says() -> None:
    devices = Devices.find([("card", 100), ("other", 100)])
    devices.mark("fake0", "doubtful", "Two workers died there.", source="faults")
    devices.mark("fake0", "lost", "It fell off the bus.", source="driver")
    first, other = devices.list()
    assert first.condition == Condition("lost", "It fell off the bus.")
    assert other.condition == WELL
    devices.clear("fake0", source="driver")
    assert devices.list()[0].condition == Condition("doubtful", "Two workers died there.")
    devices.clear("fake0", source="faults")
    devices.clear("fake0", source="faults")
    devices.mark("gone", "lost", "A device that is not there.", source="faults")
    assert [each.condition for each in devices.list()] == [WELL, WELL]


def test_memory_limit_of_a_card_is_by_index_uuid_or_for_all(tmp_path: Path) -> None:
    def told(make: Callable[[], Machine], limits: dict[str, int]) -> list[int]:
        devices = make().devices(tmp_path / str(limits), MadeUpHost(), limits)
        found = [each.memory_bytes for each in devices.list() if each.kind == "cuda"]
        devices.close()
        return found

    mig, gb10 = machines.mig, machines.gb10
    assert told(machines.old_driver, {"0": 10 * GIB}) == [10 * GIB]
    assert told(mig, {"MIG-b": 5 * GIB}) == [20 * GIB, 5 * GIB, 40 * GIB]
    assert told(mig, {"GPU-00000001": 9 * GIB}) == [20 * GIB, 20 * GIB, 9 * GIB]
    assert told(mig, {"all": 9 * GIB, "1": 99 * GIB}) == [9 * GIB, 9 * GIB, 40 * GIB]
    assert told(gb10, {"0": 8 * GIB}) == [8 * GIB]


def test_memory_limit_is_told_and_so_is_one_of_no_card(tmp_path: Path) -> None:
    limits = {"0": 10_000_000_000, "all": GIB * 99, "7": 1, "GPU-f": 2}
    devices = machines.two_cards().devices(tmp_path, limits=limits)
    assert devices.list()[0].note == "is limited to 10.0 of its 25.8 GB (devices.memory_limit)"
    assert devices.list()[1].note is None
    assert devices.unknown_limits() == ["7", "GPU-f"]
    devices.close()
    made_up = Devices.find([("card", 2 * GIB)], limits={"fake0": GIB, "fake1": GIB})
    assert made_up.list()[0].memory_bytes == GIB
    assert made_up.unknown_limits() == ["fake1"]


def test_card_under_wsl_is_never_planned_to_the_brim(tmp_path: Path) -> None:
    (card, _) = machines.wsl().devices(tmp_path).list()
    assert card.headroom(268_435_456) == GIB  # of 12
    assert card.headroom(2 * GIB) == 2 * GIB
    machine = machines.wsl()
    machine.nvml.cards[0].memory.total = 100 * GIB
    assert machine.devices(tmp_path / "large").list()[0].headroom(0) == 8 * GIB
