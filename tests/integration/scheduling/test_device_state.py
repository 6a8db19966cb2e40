"""Placement while a device is not well, over real worker processes."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bitinglip import errors
from bitinglip.scheduling.models.recheck import Recheck
from tests.support.scheduling_rig import Rig, answer, job, with_settings
from tests.support.wait import until
from workers.faults import FAULTS

GB = 1_000_000_000
WHY = "The card fell off the bus: restart the machine."


def test_device_in_doubt_takes_no_load_and_keeps_its_loaded_model(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert await answer(rig, job(model="a")) == "a b c"
        first = next(each.device for each in rig.operations.reservations())
        other = "fake1" if first == "fake0" else "fake0"
        rig.devices.mark(first, "doubtful", WHY, source="test")
        rig.devices.mark(other, "lost", WHY, source="test")
        with pytest.raises(errors.ModelDoesNotFit) as refused:
            await rig.operations.load("b")
        assert refused.value.retry_after
        assert WHY in refused.value.message
        assert await answer(rig, job(model="a")) == "a b c"
        assert [(each.state, each.reason) for each in rig.operations.devices()] == [
            (each.condition.state, WHY) for each in rig.devices.list()
        ]
        rig.devices.clear(other, source="test")
        assert await answer(rig, job(model="b")) == "a b c"
        assert {each.device for each in rig.operations.reservations()} == {"fake0", "fake1"}

    fake = {"memory_bytes": 10 * GB}
    cards = [{"name": "card", "memory_bytes": 12 * GB} for _ in range(2)]
    models = {name: {"engine": "fake", "fake": fake} for name in "ab"}
    values = {"models": models, "devices": {"fake": cards}, "residency": {"patience": 0.2}}
    with_settings(tmp_path, test, values)


def test_device_that_is_lost_loses_its_workers_and_their_jobs_run_elsewhere(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert await answer(rig, job(model="a")) == "a b c"
        first = next(each.device for each in rig.operations.reservations())
        rig.devices.mark(first, "lost", WHY, source="test")
        waits = asyncio.create_task(answer(rig, job(model="a")))
        await until(lambda: rig.dispatcher.running("a"))
        await rig.operations.sample_devices()
        assert await waits == "a b c"
        assert {each.device for each in rig.operations.reservations()} == {"fake0", "fake1"} - {
            first
        }
        assert rig.operations.cause("a") is None  # it is not the model's fault

    fake = {"memory_bytes": 10 * GB, "tokens_per_second": 5.0}
    cards = [{"name": "card", "memory_bytes": 12 * GB} for _ in range(2)]
    with_settings(
        tmp_path,
        test,
        {"models": {"a": {"engine": "fake", "fake": fake}}, "devices": {"fake": cards}},
    )


def test_device_that_a_fault_put_in_question_is_probed_and_used_again(tmp_path: Path) -> None:
    probed: list[list[str]] = []
    wrong = {"fake0": "it does not answer"}

    def probe(cards: Sequence[str]) -> Mapping[str, str]:
        probed.append(list(cards))
        return dict(wrong)

    async def test(rig: Rig) -> None:
        now = rig.manager.clock()
        recheck = Recheck(rig.manager, probe, lambda: now, kind="fake")
        rig.manager.deaths.load_failed(["fake0"], FAULTS["card lost"], now)
        await recheck.probe_due()
        assert probed == []
        refused = asyncio.create_task(answer(rig, job(model="a")))
        now += 31
        await recheck.probe_due()
        assert probed == [["fake0"]]
        assert "it does not answer" in (rig.devices.list()[0].condition.reason or "")
        wrong.clear()
        now += 31
        await recheck.probe_due()
        assert rig.devices.list()[0].condition.state == "well"
        assert await refused == "a b c"
        now += 300
        await recheck.probe_due()
        assert len(probed) == 2
        other = Recheck(rig.manager, probe, lambda: now, kind="cuda")
        rig.manager.deaths.load_failed(["fake0"], FAULTS["card lost"], now)
        now += 300
        await other.probe_due()  # made-up devices are not probed for real
        assert len(probed) == 2

    values = {
        "models": {"a": {"engine": "fake"}},
        "devices": {"fake": [{"name": "card", "memory_bytes": 12 * GB}]},
    }
    with_settings(tmp_path, test, values)
