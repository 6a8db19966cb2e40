"""A worker on a card whose RAM has grown is replaced by another while no request uses it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bitinglip.scheduling.models import growth, operations
from tests.support import short_engine
from tests.support.nvml import StandInCard, StandInNvml
from tests.support.scheduling_rig import Rig, answer, job, with_settings
from tests.support.wait import until
from workers.devices import Devices
from workers.devices.cards import Cards

GB = 1_000_000_000


def test_growth_of_a_worker_s_ram_replaces_it_and_requests_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(rig: Rig) -> None:
        for number in range(10):
            assert await answer(rig, job(f"a{number}", 1, model="a")) == f"a{number}"
        pid = rig.pid("a/0")
        resident = {pid: 3 * GB}
        for module in (growth, operations):
            monkeypatch.setattr(module, "resident", lambda _, worker, __: resident.get(worker.pid))
        await rig.operations.sample_devices()
        assert rig.operations.workers()[0].ram_bytes == 3 * GB
        resident[pid] = 7 * GB
        await rig.operations.sample_devices()
        await until(lambda: [each.pid for each in rig.operations.workers()] not in ([pid], []))
        await until(lambda: rig.operations.status("a") == "ready")
        assert await answer(rig, job("b", 1, model="a")) == "b"
        (view,) = rig.operations.workers()
        assert view.pid != pid
        assert view.restarts == 0, "it is no failure"

    assert short_engine.FILE  # it adds its engine to the table
    memory = SimpleNamespace(total=24 * GB, used=0)
    nvml = StandInNvml(StandInCard(uuid="GPU-aa", memory=memory))
    models = {"a": {"engine": "short", "kv_cache_bytes": 0}}
    with_settings(tmp_path, test, {"models": models}, devices=Devices(Cards.find(None, nvml)))
