"""Workers whose processes are killed and do not end: everything else goes on."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.logs import CaughtLogs
from tests.support.pool_harness import Recorder, fake, with_pool
from tests.support.scheduling_rig import Rig, answer, job, with_settings
from tests.support.stuck_workers import StuckLauncher
from tests.support.wait import until
from workers import pool as pool_module
from workers.faults import STUCK
from workers.pool import StartFailed, WorkerPool
from workers.protocol import Sampling, TextJob

GB = 1_000_000_000


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_ENDING_SECONDS", 0.5)
    monkeypatch.setattr(pool_module, "_KILLED_SECONDS", 0.5)


def hangs() -> TextJob:
    """Return a job that keeps its worker from obeying a stop."""
    return TextJob(id="j", prompt="!hang", sampling=Sampling(max_tokens=1))


def test_stop_of_a_worker_that_does_not_end_returns_and_says_so_once(
    caplog: CaughtLogs,
) -> None:
    launcher = StuckLauncher()

    async def test(pool: WorkerPool, seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake())
        worker.send(hangs())
        await pool.stop(worker)
        await pool.stop(worker)
        assert worker.stuck
        assert pool.stuck("echo/0") is worker
        assert pool.workers == [worker]  # it is shown as long as it is there
        assert len([each for each in caplog.messages if "does not end" in each]) == 1
        launcher.let_go()
        await worker.ended.wait()
        assert pool.stuck("echo/0") is None
        assert seen.lost == []

    with_pool(test, launcher)


def test_close_with_a_worker_that_does_not_end_returns() -> None:
    launcher = StuckLauncher()

    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake())
        worker.send(hangs())
        async with asyncio.timeout(60):
            await pool.close()
        assert pool.workers == [worker]
        launcher.let_go()
        await worker.ended.wait()

    with_pool(test, launcher)


def test_load_that_is_given_up_returns_although_its_worker_does_not_end() -> None:
    launcher = StuckLauncher()

    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        with pytest.raises(StartFailed, match="made no progress with its load"):
            await pool.start("echo/0", fake(load_fault="hang"))
        late = asyncio.create_task(pool.start("echo/1", fake(load_fault="hang")))
        await until(lambda: any(each.state == "loading" for each in pool.workers))
        late.cancel()
        async with asyncio.timeout(60):
            await asyncio.gather(late, return_exceptions=True)
        stuck = [each for each in pool.workers if each.stuck]
        assert [each.id for each in stuck] == ["echo/0", "echo/1"]
        launcher.let_go()
        for each in stuck:
            await each.ended.wait()

    with_pool(test, launcher, load_timeout=1)


def two_cards(**workers: Any) -> dict[str, Any]:
    """Return settings of two fake models, and two made-up cards that hold one of them each."""
    own = {"engine": "fake", "fake": {"memory_bytes": 5 * GB, "faults": True}}
    cards = [{"name": "card", "memory_bytes": 8 * GB} for _ in range(2)]
    return {"models": {"a": own, "b": own}, "devices": {"fake": cards}, "workers": workers}


def states(rig: Rig) -> dict[str, str]:
    return {each.id: each.state for each in rig.operations.devices()}


def test_silent_worker_that_does_not_end_loses_its_jobs_and_keeps_its_memory(
    tmp_path: Path,
) -> None:
    launcher = StuckLauncher()

    async def test(rig: Rig) -> None:
        await rig.operations.load("a")
        launcher.stuck = False  # the next workers end when they are killed
        running = asyncio.create_task(answer(rig, job("!hang", model="a")))
        await until(lambda: len(rig.pool.workers) == 2)  # it runs again, on the other card
        assert states(rig) == {"fake0": "doubtful", "fake1": "well"}
        assert next(each.reason for each in rig.operations.devices()) == STUCK.sentence
        held = {each.device: each.bytes for each in rig.operations.reservations()}
        assert held["fake0"] == 5 * GB
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        launcher.let_go()
        await until(lambda: "fake0" not in {e.device for e in rig.operations.reservations()})
        assert states(rig)["fake0"] == "well"

    with_settings(tmp_path, test, two_cards(heartbeat_timeout=1), launcher=launcher)


def test_eviction_of_a_worker_that_does_not_end_lets_unload_return(tmp_path: Path) -> None:
    launcher = StuckLauncher()

    async def test(rig: Rig) -> None:
        await rig.operations.load("a")
        (replica,) = rig.manager.replicas()
        assert replica.worker is not None
        replica.worker.send(hangs())
        launcher.stuck = False
        async with asyncio.timeout(60):
            await rig.operations.unload("a")
        assert rig.operations.status("a") == "available"
        assert rig.reserved() == 5 * GB
        assert await answer(rig, job(model="a")) == "a b c"  # beside it, on the other card
        async with asyncio.timeout(60):
            await rig.operations.unload("a")
        assert rig.reserved() == 5 * GB
        launcher.let_go()
        await until(lambda: rig.reserved() == 0)
        assert set(states(rig).values()) == {"well"}

    with_settings(tmp_path, test, two_cards(), launcher=launcher)
