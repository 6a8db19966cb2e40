"""Memory of other programs: the driver's figure, less that of our own workers."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.restarts import RestartBudget
from bitinglip.scheduling.models.state import ModelState, Replica
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.scheduling.placement.ram import RamNeed
from bitinglip.settings import Settings
from model_store.manifest import Manifest
from tests.support import machines
from tests.support.nvml import StandInCard, StandInNvml
from workers.devices import Devices, DeviceUsage
from workers.devices.cards import Cards
from workers.protocol import Heartbeat, Ready

MODEL = {"engine": "fake", "device": "cuda"}


def facts(**values: Any) -> ResourceFacts:
    settings = Settings.model_validate({"models": {"m": MODEL}, **values})
    return ResourceFacts(settings, Devices.find([("card", 100)]), Footprints())


def replica(index: int = 0) -> Replica:
    return Replica("m", index, {"fake0": 40}, 0.0)


def test_memory_that_the_driver_counts_for_our_processes_is_ours() -> None:
    ours = facts()
    ours.update({"fake0": DeviceUsage(60, {7: 35, 8: 25})}, [replica()], {"m/0": 7})
    assert ours.other_bytes("fake0") == 25


def test_memory_of_a_worker_that_loads_is_not_another_program_s() -> None:
    """It has said nothing yet; the driver knows its process all the same."""
    ours = facts()
    for used in (0, 10, 40):
        ours.update({"fake0": DeviceUsage(used, {7: used})}, [replica()], {"m/0": 7})
        assert ours.other_bytes("fake0") == 0


@pytest.mark.parametrize(("told", "other"), [(19, 21), (22, 18), (3, 20), (32, 20)])
def test_memory_by_the_driver_counts_only_near_the_worker_s_own(told: int, other: int) -> None:
    """Use figures in GiB of a container, where the driver's process ids may be those of other
    programs."""
    ours = facts()
    loaded = replica()
    beat = Heartbeat(steps=1, in_flight=0, memory_bytes=20 << 30)
    loaded.worker = SimpleNamespace(heartbeat=beat)  # type: ignore[assignment]
    ours.update({"fake0": DeviceUsage(40 << 30, {7: told << 30})}, [loaded], {"m/0": 7})
    assert ours.other_bytes("fake0") == other << 30


@pytest.mark.parametrize("before", [0, 30])
def test_memory_of_a_load_is_ours_where_the_driver_tells_no_processes(
    before: int,
) -> None:
    ours = facts()
    ours.update({"fake0": DeviceUsage(before, {})}, [], {})
    ours.update({"fake0": DeviceUsage(before + 40, {})}, [replica()], {"m/0": 7})
    assert ours.other_bytes("fake0") == before
    (device,) = ours.capacities()
    assert device.usable == 100 - before


def test_memory_of_a_worker_that_has_not_started_is_another_program_s() -> None:
    """Take memory between the plan and the load, as a game does."""
    ours = facts()
    ours.update({"fake0": DeviceUsage(10, {})}, [], {})
    ours.update({"fake0": DeviceUsage(40, {})}, [replica()], {})
    assert ours.other_bytes("fake0") == 40


@pytest.mark.parametrize(("resident", "other"), [(30, 20), (90, 10)])
def test_ram_of_a_load_onto_a_card_is_ours_as_far_as_it_is_planned(
    resident: int, other: int
) -> None:
    ours = facts()
    loading = replica()
    loading.ram = RamNeed(40)
    ours.update({"cpu": DeviceUsage(50, {7: resident})}, [loading], {"m/0": 7})
    assert ours.other_bytes("cpu") == other


def test_weights_of_a_spread_model_are_bounded_by_its_shares() -> None:
    ours = facts()
    alone, spread = replica(), replica()
    spread.devices = {"fake0": 60, "fake1": 60}
    manifest = Manifest(
        name="m",
        kind="text",
        engine="fake",
        source="test",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert ours.device_weights(manifest, alone) == ()
    assert ours.device_weights(manifest, spread) == (60, 60)


def learned(ours: ResourceFacts, loaded: Replica, beats: Sequence[int]) -> list[int]:
    """Return the reservation after each heartbeat of a worker of a text model, in MB."""
    manifest = Manifest(
        name="t",
        kind="text",
        engine="text",
        source="test",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    found: list[int] = []
    for beat in beats:
        loaded.worker = SimpleNamespace(  # type: ignore[assignment]
            ready=Ready(slots=1, memory_bytes=0),
            heartbeat=Heartbeat(steps=1, in_flight=0, memory_bytes=beat * 1_000_000),
        )
        loaded.devices = ours.observe(manifest, loaded)
        found += [size // 1_000_000 for size in loaded.devices.values()]
    return found


def test_need_that_is_measured_lower_than_guessed_lets_another_model_in() -> None:
    ours = facts(models={"m": MODEL, "t": {"kv_cache_bytes": 0, "device": "cuda"}})
    loaded = Replica("t", 0, {"fake0": 9_000_000_000}, 0.0, state="ready")
    assert learned(ours, loaded, [3000, 4000]) == [9000, 9000]  # it has not shown what it takes
    loaded.ended_jobs = 40
    assert learned(ours, loaded, [3500]) == [4080]
    assert learned(ours, loaded, [5000, 4000]) == [5000, 5000]  # what is new, and then no less


def test_need_does_not_swing_with_what_is_measured() -> None:
    ours = facts(models={"m": MODEL, "t": {"kv_cache_bytes": 0, "device": "cuda"}})
    loaded = Replica("t", 0, {"fake0": 9_000_000_000}, 0.0, state="ready", ended_jobs=40)
    noise = random.Random(7)
    beats = [round(4000 * noise.uniform(0.5, 1.5)) for _ in range(500)]
    reserved = learned(ours, loaded, beats)
    assert reserved == sorted(reserved), "it shrank again"
    assert all(size >= beat for size, beat in zip(reserved, beats, strict=True))
    assert len(set(reserved)) < 20
    assert reserved[-1] <= max(beats) * 1.03


def test_shortage_that_flaps_starts_again_each_time() -> None:
    now = [0.0]
    settings = Settings.model_validate({"models": {"m": MODEL}})
    devices = Devices.find([("card", 100)])
    ours = ResourceFacts(settings, devices, Footprints(), clock=lambda: now[0])
    for second in range(0, 10, 2):
        now[0] = float(second)
        ours.use.note_short(["fake0"])
        now[0] += 0.9
        assert ours.capacities()[0].short_since == second
        ours.use.note_short([])
    ours.use.note_short(["fake0"])
    now[0] += 4
    ours.use.note_short(["fake0"])
    assert ours.capacities()[0].short_since == pytest.approx(now[0] - 4)


@pytest.mark.parametrize(
    ("name", "capability", "kind", "model_type", "dtype"),
    [
        ("NVIDIA GeForce GTX 1660", (7, 5), "image", None, "float32"),
        ("NVIDIA GeForce GTX 1660", (7, 5), "transcription", "whisper", "float32"),
        ("NVIDIA GeForce GTX 1660", (7, 5), "text", "llama", None),
        ("NVIDIA GeForce GTX 1660", (7, 5), "speech", "vits", None),
        ("NVIDIA GeForce RTX 2060", (7, 5), "image", None, None),
        ("NVIDIA GeForce RTX 2060", (7, 5), "text", "gemma3_text", "float32"),
        ("NVIDIA GeForce RTX 4060", (8, 9), "text", "gemma3_text", None),
    ],
)
def test_dtype_that_is_planned_is_the_one_that_the_card_computes(
    name: str,
    capability: tuple[int, int],
    kind: str,
    model_type: str | None,
    dtype: str | None,
) -> None:
    nvml = StandInNvml(StandInCard(name=name, capability=capability))
    machine = ResourceFacts(Settings(), Devices(Cards.find(None, nvml)), Footprints())
    manifest = Manifest(
        name="m",
        kind=kind,
        engine=kind,
        model_type=model_type,
        source="test",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert machine.load_config(manifest, "cuda").dtype == dtype
    assert machine.load_config(manifest, "cpu").dtype is None


def test_device_of_a_model_is_the_accelerator_unless_set() -> None:
    ours = facts()
    assert ours.kinds(Settings().model("m")) == ["fake"]
    machine = ResourceFacts(Settings(), Devices.find(), Footprints())
    told = Settings.model_validate({"models": {"m": {"device": "cpu"}}})
    assert machine.kinds(told.model("m")) == ["cpu"]


def test_load_eta_after_a_restart_of_the_server_is_what_was_learned() -> None:
    manifest = Manifest(
        name="m",
        kind="text",
        engine="text",
        weight_bytes=1,
        source="test",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    learned = Footprints()
    machine = ResourceFacts(Settings(), Devices.find(), learned)
    model_state = ModelState(manifest, RestartBudget(1, 1.0))
    assert machine.load_eta(model_state, 0.0) is None
    [kind] = machine.kinds(Settings().model("m"))
    config = machine.load_config(manifest, kind)
    learned.observe(manifest, config, memory_bytes=1, load_seconds=270.0)
    assert machine.load_eta(model_state, 0.0) == 270.0
    model_state.replicas[0] = Replica("m", 0, {"cpu": 1}, began=10.0)
    assert machine.load_eta(model_state, 40.0) == 240.0


def test_memory_of_a_device_that_does_not_answer_is_not_counted() -> None:
    """Its last figure is out of date, and must not be shown as another program's."""
    ours = facts()
    ours.update({"fake0": DeviceUsage(60, {})}, [], {})
    assert ours.other_bytes("fake0") == 60
    ours.update({}, [], {})
    assert ours.other_bytes("fake0") == 0


def test_memory_that_card_and_processor_share_is_counted_once(tmp_path: Path) -> None:
    devices = machines.gb10().devices(tmp_path)
    shared = ResourceFacts(Settings(), devices, Footprints())
    on_cpu = Replica("m", 0, {"cpu": 5 * 2**30}, 0.0)
    beat = Heartbeat(steps=1, in_flight=0, memory_bytes=5 * 2**30)
    on_cpu.worker = SimpleNamespace(heartbeat=beat)  # type: ignore[assignment]
    used = DeviceUsage(6 * 2**30, {})
    shared.update({"0": used, "cpu": used}, [on_cpu], {})
    assert shared.other_bytes("0") == shared.other_bytes("cpu") == 2**30
    card, cpu = shared.capacities()
    assert (card.shares, cpu.shares) == ("cpu", None)
    assert card.headroom >= card.memory // 16
