"""Resume: jobs and workers after the machine was suspended, over real worker processes."""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitinglip import errors
from bitinglip.scheduling.models import resume as resume_module
from bitinglip.scheduling.models import state
from bitinglip.scheduling.models.resume import Resume
from tests.support.scheduling_rig import ECHO, Rig, answer, job, with_settings
from tests.support.wait import until
from workers.protocol import TextDone


class Machine:
    """Simulates the clocks of a machine that can be suspended, and its cards after it resumes."""

    def __init__(self) -> None:
        self.suspended = 0.0
        self.failed: dict[str, str] = {}
        self.probed: list[list[str]] = []
        self.answers = threading.Event()
        self.answers.set()

    def boottime(self) -> float:
        return time.monotonic() + self.suspended

    def probe(self, cards: Sequence[str]) -> Mapping[str, str]:
        self.probed.append(list(cards))
        assert self.answers.wait(30)
        return dict(self.failed)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(state, "_boottime", machine.boottime)
    monkeypatch.setattr(resume_module, "_RETRY_SECONDS", 0.0)
    return machine


def make_resume(rig: Rig, machine: Machine, kind: str = "fake") -> Resume:
    parts = (rig.devices, rig.manager, rig.dispatcher.delivery, rig.pool)
    return Resume(*parts, machine.probe, kind=kind)


def conditions(rig: Rig) -> list[str]:
    return [device.condition.state for device in rig.devices.list()]


def settings(**workers: Any) -> dict[str, Any]:
    cards = [{"name": "card", "memory_bytes": 12_000_000_000}]
    fake = {"engine": "fake", "fake": {"faults": True, "tokens_per_second": 100}}
    models = {ECHO: fake, "other": fake}
    return {"models": models, "devices": {"fake": cards}, "workers": workers}


def test_resume_lets_work_go_on_once_the_probe_has_passed(tmp_path: Path, machine: Machine) -> None:
    async def test(rig: Rig) -> None:
        resume = make_resume(rig, machine)
        assert await answer(rig, job()) == "a b c"
        pid = rig.pid()
        machine.suspended = 0.5  # clocks that are corrected
        await resume.check()
        assert machine.probed == []
        machine.suspended = 3600.0
        machine.answers.clear()
        looking = asyncio.create_task(resume.check())
        await until(lambda: machine.probed == [["fake0"]])
        with rig.dispatcher.open(job()) as waiting:
            assert rig.dispatcher.queued == 1, "nothing is sent to a worker on a card in question"
            assert await answer(rig, job(model="other")) == "a b c", "a load is a new process"
            assert rig.dispatcher.queued == 1
            machine.answers.set()
            await looking
            assert isinstance(await waiting.result(), TextDone)
        assert conditions(rig) == ["well"]
        assert rig.pid() == pid
        await resume.check()
        assert len(machine.probed) == 1

    with_settings(tmp_path, test, settings())


def test_resume_ends_workers_of_a_card_that_fails_and_loads_again_once_it_computes(
    tmp_path: Path, machine: Machine
) -> None:
    async def test(rig: Rig) -> None:
        resume = make_resume(rig, machine)
        assert await answer(rig, job()) == "a b c"
        pid = rig.pid()
        machine.suspended, machine.failed = 3600.0, {"fake0": "CUDA unknown error"}
        await resume.check()
        assert conditions(rig) == ["doubtful"]
        [reason] = [device.condition.reason or "" for device in rig.devices.list()]
        assert "CUDA unknown error" in reason
        assert "modprobe nvidia_uvm" in reason
        assert [view.state for view in rig.operations.workers()] == ["failed"]
        machine.failed = {}
        await resume.check()
        assert conditions(rig) == ["well"]
        assert await answer(rig, job()) == "a b c"
        assert rig.pid() != pid
        assert not rig.manager.models[ECHO].given_up

    with_settings(tmp_path, test, settings(max_restarts=0))


def test_resume_counts_no_death_of_a_worker_that_was_suspended_on_a_card(
    tmp_path: Path, machine: Machine
) -> None:
    """It dies before the clocks are read; no request here may lose one worker more."""

    async def test(rig: Rig) -> None:
        assert await answer(rig, job()) == "a b c"
        with rig.dispatcher.open(job("!slow a b c")) as event_log:
            await until(lambda: rig.dispatcher.running(ECHO) == 1)
            machine.suspended += 60.0
            rig.kill()
            await until(lambda: rig.manager.models[ECHO].restarts == 1)
            [entry] = rig.dispatcher.delivery.entries.values()
            assert entry.deaths == 0
            assert not rig.manager.models[ECHO].given_up
            await until(lambda: rig.dispatcher.running(ECHO) == 1)
            rig.kill()  # this one began after the suspension
            with pytest.raises(errors.ModelLoadFailed):
                await event_log.result()
        assert rig.manager.models[ECHO].given_up

    with_settings(tmp_path, test, settings(max_restarts=0))


def test_resume_of_a_machine_without_cards_probes_nothing(tmp_path: Path, machine: Machine) -> None:
    async def test(rig: Rig) -> None:
        resume = make_resume(rig, machine, kind="cuda")
        machine.suspended = 3600.0
        await resume.check()
        assert (machine.probed, conditions(rig)) == ([], ["well"])

    with_settings(tmp_path, test, settings())


def test_resume_does_not_probe_a_card_that_takes_one_process_beside_its_worker(
    tmp_path: Path, machine: Machine
) -> None:
    async def test(rig: Rig) -> None:
        alone = [replace(each, exclusive=True) for each in rig.devices._made_up]
        rig.devices._made_up = tuple(alone)
        rig.devices._rebuild()
        resume = make_resume(rig, machine)
        await answer(rig, job())
        machine.suspended = 3600.0
        await resume.check()
        assert machine.probed == []
        await rig.operations.unload(ECHO)
        machine.suspended += 3600.0
        await resume.check()
        assert machine.probed == [["fake0"]]

    with_settings(tmp_path, test, settings())
