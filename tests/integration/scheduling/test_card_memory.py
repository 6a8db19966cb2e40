"""A card's memory between a plan and a load: late after an end, or taken by another program.

Real workers; the driver's figures are scripted.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bitinglip import errors
from bitinglip.scheduling.models.capacity import capacity
from bitinglip.scheduling.models.loader import ReplicaLoader
from bitinglip.scheduling.models.returns import MemoryReturns
from bitinglip.settings import Devices as DeviceSettings
from tests.support import short_engine
from tests.support.nvml import StandInCard, StandInNvml
from tests.support.scheduling_rig import Rig, with_settings
from tests.support.wait import until
from workers.devices import Devices
from workers.devices.cards import Cards

GB = 1_000_000_000
NEED = short_engine.HELD  #: what the estimate of a model without weights is, too


class Memory:
    """Simulates the memory of a card of 2 GB, as the driver reports it: what workers hold, and the
    rest."""

    def __init__(self) -> None:
        self.total = 2 * GB
        self.others = 0
        self.holders: Callable[[], int] = lambda: 0
        self.late = 0.0  #: seconds for which the driver holds what an ended worker held
        self.part = 1.0  #: of it
        self._held = 0
        self._ended: tuple[float, int] | None = None

    @property
    def used(self) -> int:
        held = self.holders() * NEED
        if held < self._held:
            self._ended = (time.monotonic(), int((self._held - held) * self.part))
        self._held = held
        left = 0
        if self._ended is not None and time.monotonic() < self._ended[0] + self.late:
            left = self._ended[1]
        return self.others + held + left


def run(path: Path, test: Callable[[Rig, Memory], Awaitable[None]], **devices: int) -> None:
    memory = Memory()
    nvml = StandInNvml(StandInCard(uuid="GPU-aa", memory=memory))
    models = {name: {"engine": "short", "kv_cache_bytes": 0} for name in "ab"}
    settings = {"models": models, "devices": {"headroom_bytes": 0, **devices}}

    async def sampled(rig: Rig) -> None:
        memory.holders = lambda: sum(each.worker is not None for each in rig.manager.replicas())

        async def sample() -> None:
            while True:
                await rig.operations.sample_devices()
                await asyncio.sleep(0.05)

        sampling = asyncio.create_task(sample())
        try:
            await test(rig, memory)
        finally:
            sampling.cancel()

    with_settings(path, sampled, settings, devices=Devices(Cards.find(None, nvml)))


def fails(rig: Rig, name: str, times: int) -> Path:
    """Have the next loads of a model run out of memory."""
    file = rig.manager.model_state(name).manifest
    path = rig.store.path(file.name) / short_engine.FILE
    path.write_text(str(times))
    return path


def floor(rig: Rig, name: str) -> int:
    manifest = rig.manager.model_state(name).manifest
    config = rig.manager.facts.load_config(manifest, "cuda")
    return rig.footprints.need(manifest, config).bytes


def seen(rig: Rig) -> int:
    """Return the bytes in use at the last look at the card."""
    reading = rig.manager.facts.use.reading("0")
    return 0 if reading is None else reading.used_bytes


@pytest.mark.parametrize(("late", "part"), [(0.0, 1.0), (0.4, 1.0), (3.0, 1.0), (30.0, 0.1)])
def test_memory_that_comes_back_late_is_waited_for(
    tmp_path: Path, late: float, part: float
) -> None:
    """Nothing is refused meanwhile; what is low at the first look is not waited for."""

    async def test(rig: Rig, memory: Memory) -> None:
        memory.others = int(1.2 * GB)  # one of the two fits at a time
        await rig.operations.load("a")
        await until(lambda: seen(rig) > 1.7 * GB)
        memory.late, memory.part = late, part
        await rig.operations.unload("a")
        began = time.monotonic()
        before = floor(rig, "b")
        memory.others = int(1.2 * GB)
        await rig.operations.load("b")
        assert time.monotonic() - began < late + 20
        if part == 1.0:
            assert time.monotonic() - began > late * 0.8
        assert floor(rig, "b") <= before * 1.1

    run(tmp_path, test)


def test_memory_that_does_not_come_back_is_another_program_s(tmp_path: Path) -> None:
    async def test(rig: Rig, memory: Memory) -> None:
        memory.others = int(1.2 * GB)
        await rig.operations.load("a")
        await until(lambda: seen(rig) > 1.7 * GB)
        memory.late = 60.0
        await rig.operations.unload("a")
        with pytest.raises(errors.ModelDoesNotFit) as refused:
            await rig.operations.load("b")
        assert refused.value.retry_after

    run(tmp_path, test)


def test_load_planned_again_where_memory_is_taken_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(rig: Rig, memory: Memory) -> None:
        look = ReplicaLoader._look
        looks: list[float] = []

        async def look_while_a_game_starts(loader: ReplicaLoader) -> None:
            if not looks:
                memory.others = int(1.8 * GB)
                await asyncio.sleep(0.3)  # looks that had begun are over
            looks.append(time.monotonic())
            await look(loader)

        monkeypatch.setattr(ReplicaLoader, "_look", look_while_a_game_starts)
        with pytest.raises(errors.ModelDoesNotFit) as refused:
            await rig.operations.load("b")
        assert refused.value.retry_after
        assert rig.manager.models["b"].restarts == 0
        assert not rig.manager.models["b"].failed
        memory.others = 0
        await until(lambda: rig.manager.facts.other_bytes("0") == 0)
        await rig.operations.load("b")

    run(tmp_path, test)


def test_footprint_is_not_raised_where_another_program_took_the_memory(tmp_path: Path) -> None:
    async def test(rig: Rig, memory: Memory) -> None:
        before = floor(rig, "b")
        path = fails(rig, "b", 1)
        load = asyncio.create_task(rig.operations.load("b"))
        await until(lambda: bool(rig.manager.models["b"].loading))
        await until(lambda: any(each.other_bytes for each in rig.manager.replicas()))
        memory.others = int(1.0 * GB)
        await load
        assert path.read_text() == "0"
        assert floor(rig, "b") < before * 1.1

    run(tmp_path, test)


def test_footprint_is_raised_where_no_other_program_took_the_memory(tmp_path: Path) -> None:
    async def test(rig: Rig, _memory: Memory) -> None:
        before = floor(rig, "b")
        fails(rig, "b", 1)
        await rig.operations.load("b")
        assert floor(rig, "b") > before

    run(tmp_path, test)


def test_load_out_of_memory_soon_after_a_stop_is_tried_again_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is still away as the load fails, however slow the machine is."""
    monkeypatch.setattr("bitinglip.scheduling.models.returns._PATIENCE", 0.5)
    monkeypatch.setattr("bitinglip.scheduling.models.returns._RECENT", 600.0)

    async def test(rig: Rig, memory: Memory) -> None:
        await rig.operations.load("a")
        await until(lambda: seen(rig) > 0.5 * GB)
        memory.late = 600.0
        await rig.operations.unload("a")
        before = floor(rig, "b")
        path = fails(rig, "b", 1)
        await rig.operations.load("b")
        assert path.read_text() == "0"
        assert floor(rig, "b") <= before * 1.1

    run(tmp_path, test)


def test_display_keeps_memory_of_its_card(tmp_path: Path) -> None:
    async def test(rig: Rig, _memory: Memory) -> None:
        (device,) = rig.manager.facts.capacities()
        assert device.headroom == 0
        nvml = StandInNvml(StandInCard(uuid="GPU-aa", display=1))
        (shown,) = Devices(Cards.find(None, nvml)).list()
        found = capacity(shown, rig.manager.facts.use, DeviceSettings(), rig.manager.facts.shared)
        assert found.headroom == 1_073_741_824

    run(tmp_path, test)


def test_returns_of_several_workers_add_up() -> None:
    now = [0.0]
    returns = MemoryReturns(lambda: now[0])
    returns.expect("0", used=20, held=8)
    returns.expect("0", used=20, held=10)
    assert returns.outstanding("0", 20) == 18
    assert returns.outstanding("0", 12) == 10
    assert returns.awaited(["0"])
    assert returns.outstanding("0", 4) == 0  # most of it: the rest may be others' doing
    assert not returns.awaited(["0"])
    returns.expect("0", used=20, held=8)
    now[0] = 6.0
    assert returns.outstanding("0", 20) == 0  # late, and counted as another program's
    assert not returns.awaited(["0"])
    assert returns.wait_again(["0"])
    assert returns.outstanding("0", 20) == 8
    now[0] = 60.0
    assert returns.outstanding("0", 20) == 0
    assert not returns.wait_again(["0"])
