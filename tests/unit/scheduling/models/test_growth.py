"""A worker on a card whose RAM keeps growing is replaced while it is idle."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bitinglip.scheduling.models.growth import RamGrowth, resident
from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.state import Replica
from workers.devices import DeviceUsage
from workers.protocol import Load, TextOptions
from workers.worker import Worker

GB = 1_000_000_000


@dataclass(eq=False)
class Process:
    pid: int
    spec: Load | None = None


def replica(
    *, device: str = "GPU-aa", jobs: int = 10, in_flight: int = 0, spec: Load | None = None
) -> Replica:
    made = Replica("m", 0, {device: GB}, 0.0, state="ready")
    made.worker = cast("Worker", Process(pid=7, spec=spec))
    made.ended_jobs, made.in_flight = jobs, in_flight
    return made


def outgrown(one: Replica, *held: float) -> bool:
    growth = RamGrowth()
    return [bool(growth.outgrown([one], {one.id: int(each * GB)})) for each in held][-1]


@pytest.mark.parametrize(
    ("held", "found"), [((3, 5, 5.9), False), ((3, 6.1), True), ((0.5, 2.4), False), ((6,), False)]
)
def test_growth_to_twice_what_the_first_jobs_took_replaces_a_worker(
    held: tuple[float, ...], found: bool
) -> None:
    assert outgrown(replica(), *held) is found


@pytest.mark.parametrize("facts", [{"device": "cpu"}, {"jobs": 9}, {"in_flight": 1}])
def test_growth_on_the_processor_at_first_or_at_work_is_left_alone(facts: dict[str, Any]) -> None:
    assert not outgrown(replica(**facts), 3, 9)


def test_growth_by_prefixes_in_ram_is_left_alone() -> None:
    """They fill up as much as their setting allows, and no more."""
    spec = Load(model="m", engine="text", path="", text=TextOptions(prefix_ram_bytes=9 * GB))
    assert not outgrown(replica(spec=spec), 1, 11.9)
    assert outgrown(replica(spec=spec), 1, 12.1)


def test_ram_of_a_worker_is_what_its_own_node_tells_of_a_process_of_that_number() -> None:
    readings = {f"n{n}:cpu": DeviceUsage(0, {7: size * GB}) for n, size in ((1, 2), (2, 90))}
    manager = cast("ModelManager", SimpleNamespace(facts=SimpleNamespace(reading=readings.get)))
    worker = cast("Worker", Process(pid=7))
    found = [resident(manager, worker, [f"n{number}:0"]) for number in (1, 2, 3)]
    assert found == [2 * GB, 90 * GB, None]
