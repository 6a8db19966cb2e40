"""Quarantine: the request that killed a worker, its bystanders, and requests that need more
memory."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bitinglip import errors
from bitinglip.scheduling.models.state import Replica
from model_store.manifest import Manifest
from tests.support.scheduling_rig import ECHO, Rig, answer, job, with_rig, with_settings
from tests.support.wait import until
from workers.oom_kills import OomKills

GB = 1_000_000_000


def test_quarantine_takes_a_request_that_kills_two_workers(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(errors.WorkerCrashed) as first:
            await answer(rig, job("!crash"))
        assert first.value.details == {"quarantined": True}
        assert await answer(rig, job()) == "a b c"
        (worker,) = rig.operations.workers()
        with pytest.raises(errors.WorkerCrashed) as second:
            await answer(rig, job("!crash", stream=True))
        assert second.value.details == {"quarantined": True}
        assert rig.operations.workers() == [worker]  # no other worker died of it
        assert worker.restarts == 2

    with_rig(tmp_path, test)


def test_quarantine_gives_the_restart_budget_back(tmp_path: Path) -> None:
    """Each takes two workers along, and three restarts are all that the model has."""

    async def test(rig: Rig) -> None:
        for poison in ("!crash one", "!crash two", "!crash three"):
            with pytest.raises(errors.WorkerCrashed) as caught:
                await answer(rig, job(poison))
            assert caught.value.details == {"quarantined": True}
        assert await answer(rig, job()) == "a b c"
        assert rig.manager.models[ECHO].restarts == 6

    with_rig(tmp_path, test)


def test_quarantine_ends_when_the_model_is_loaded_again(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(errors.WorkerCrashed):
            await answer(rig, job("!crash"))
        await rig.operations.unload(ECHO)
        with pytest.raises(errors.WorkerCrashed):
            await answer(rig, job("!crash"))
        assert rig.manager.models[ECHO].restarts == 2

    with_rig(tmp_path, test)


def test_quarantine_spares_the_bystanders_of_a_poison_request(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        bystanders = [asyncio.create_task(answer(rig, job(f"n{n}", 5))) for n in range(6)]
        with pytest.raises(errors.WorkerCrashed) as refused:
            await answer(rig, job("!crash"))
        assert refused.value.details == {"quarantined": True}
        assert await asyncio.gather(*bystanders) == [" ".join([f"n{n}"] * 5) for n in range(6)]
        # Twice in company, then once alone: that is how it was found out.
        assert rig.manager.models[ECHO].restarts == 3

    with_rig(tmp_path, test, tokens_per_second=20)


def test_retry_of_a_request_that_ran_out_of_memory_runs_alone(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("beside")
        await rig.operations.load(ECHO)
        pid = rig.pid()
        others = [asyncio.create_task(answer(rig, job(f"n{n}", 5))) for n in range(3)]
        with pytest.raises(errors.OutOfMemory) as failed:
            await answer(rig, job("!oom"))
        assert "alone on its worker" in failed.value.details["tried"]
        assert {"setting": f"models.{ECHO}.max_batch", "value": 32} in (
            failed.value.details["ways_out"]
        )
        assert await asyncio.gather(*others) == [" ".join([f"n{n}"] * 5) for n in range(3)]
        assert rig.pid() == pid  # the worker lives on
        await until(lambda: rig.operations.status("beside") == "available")  # it made room

    fake = {"faults": True, "tokens_per_second": 50}
    models = {ECHO: {"fake": fake}, "beside": {"engine": "fake"}}
    with_settings(tmp_path, test, {"models": models})


def test_isolation_holds_nothing_for_cancelled_suspects(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        tasks = [asyncio.create_task(answer(rig, job(f"n{n}", 200))) for n in range(4)]
        await until(lambda: rig.dispatcher.running(ECHO) == 4)
        for _ in range(2):
            serving_again = partial(_serving_again, rig, rig.manager.models[ECHO].restarts)
            rig.kill()
            await until(serving_again)
        model_queue = rig.dispatcher.delivery.model_queues[ECHO]
        assert model_queue.isolated is not None
        assert len(model_queue.isolation_queue) == 3
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await answer(rig, job()) == "a b c"

    with_rig(tmp_path, test, tokens_per_second=20)


def _serving_again(rig: Rig, restarts: int) -> bool:
    return bool(rig.manager.serving(ECHO)) and rig.manager.models[ECHO].restarts > restarts


def test_drain_of_a_worker_that_dies_loses_no_request(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        running = asyncio.create_task(answer(rig, job(max_tokens=10)))
        await until(lambda: rig.dispatcher.running(ECHO))
        rig.operations.drain_worker(f"{ECHO}/0")
        rig.kill()
        assert len((await running).split()) == 10

    with_rig(tmp_path, test, tokens_per_second=30)


def test_eviction_after_out_of_memory_spares_the_model_that_ran_it(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        pid = rig.pid()
        with pytest.raises(errors.OutOfMemory):
            await answer(rig, job("!oom"))
        assert await answer(rig, job()) == "a b c"
        assert rig.pid() == pid

    with_rig(tmp_path, test)


# ---- deaths that no request is to blame for ------------------------------------------------------


def cards(*models: str, **fake: object) -> dict[str, Any]:
    """Return settings of fake models that share a made-up card."""
    options = {"faults": True, "memory_bytes": GB, "tokens_per_second": 20, **fake}
    return {
        "models": {name: {"engine": "fake", "fake": options} for name in models},
        "devices": {"fake": [{"name": "card", "memory_bytes": 8 * GB}]},
        "residency": {"patience": 1},  # requests wait so long for a card that is in question
    }


def test_quarantine_and_restarts_do_not_count_workers_of_a_card_that_die_together(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        for name in "ab":
            await rig.operations.load(name)
        running = [
            asyncio.create_task(answer(rig, job(model=name, max_tokens=40))) for name in "ab"
        ]
        for number in range(2):
            await until(lambda: all(rig.dispatcher.running(name) for name in "ab"))
            for name in "ab":
                rig.kill(f"{name}/0")
            await until(partial(_restarted, rig, number + 1))
        assert [len(text.split()) for text in await asyncio.gather(*running)] == [40, 40]
        now = rig.manager.clock()
        assert [each.budget.pause(now) for each in rig.manager.models.values()] == [0, 0]

    with_settings(tmp_path, test, cards("a", "b"))


def _restarted(rig: Rig, times: int) -> bool:
    return all(rig.manager.models[name].restarts == times for name in "ab")


def test_quarantine_takes_no_request_that_meets_a_device_s_fault_each_time(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        clearing = asyncio.create_task(_keep_well(rig))
        poison = job("!raise CUDA error: unknown error", model="a")
        with pytest.raises(errors.WorkerCrashed, match="unknown error of CUDA") as failed:
            await answer(rig, poison)
        clearing.cancel()
        assert failed.value.details == {"quarantined": False}
        assert poison not in rig.dispatcher.delivery.quarantine
        assert rig.manager.models["a"].restarts == 3
        assert not rig.manager.models["a"].given_up

    with_settings(tmp_path, test, cards("a"))


def test_quarantine_takes_no_request_whose_card_is_in_question_at_once(tmp_path: Path) -> None:
    """There is no other card: it is told why, and may come again."""

    async def test(rig: Rig) -> None:
        poison = job("!raise CUDA error: uncorrectable ECC error encountered", model="a")
        for number in (1, 2):
            with pytest.raises(errors.ModelDoesNotFit, match="could not correct"):
                await answer(rig, poison)
            assert rig.manager.models["a"].restarts == number
            assert [each.state for each in rig.operations.devices()] == ["doubtful"]
            rig.devices.clear("fake0", source="faults")

    with_settings(tmp_path, test, cards("a"))


async def _keep_well(rig: Rig) -> None:
    """Play an operator who trusts the card all the same."""
    while True:
        rig.devices.clear("fake0", source="faults")
        await asyncio.sleep(0.05)


def test_quarantine_waits_for_a_request_that_loses_its_context_twice(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(errors.WorkerCrashed, match="lost its CUDA context") as failed:
            await answer(rig, job("!raise CUDA error: device-side assert triggered", model="a"))
        assert failed.value.details == {"quarantined": True}
        assert [each.state for each in rig.operations.devices()] == ["well"]

    with_settings(tmp_path, test, cards("a"))


def test_load_that_meets_a_lost_card_puts_it_in_question_and_counts_against_nothing_else(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(errors.ModelDoesNotFit, match="does not answer"):
            await answer(rig, job(model="a"))
        assert [each.state for each in rig.operations.devices()] == ["doubtful"]
        assert not rig.manager.models["a"].failed
        assert rig.reserved() == 0

    with_settings(tmp_path, test, cards("a", load_fault="device"))


def kernel_that_ends_processes(rig: Rig, path: Path) -> None:
    """Let the kernel's counter be one higher than when the server started."""
    (path / "vmstat").write_text("oom_kill 0\n")
    rig.pool._oom_kills = OomKills(path)
    (path / "vmstat").write_text("oom_kill 1\n")


def test_load_that_the_kernel_ends_for_lack_of_ram_says_so_and_is_not_tried_again(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        kernel_that_ends_processes(rig, tmp_path)
        with pytest.raises(errors.ModelLoadFailed, match=r"RAM ran out.*stop other programs"):
            await answer(rig, job(model="a"))
        model_state = rig.manager.models["a"]
        assert model_state.given_up
        assert "RAM ran out" in (rig.operations.cause("a") or "")
        with pytest.raises(errors.ModelLoadFailed, match="out of service"):
            await answer(rig, job(model="a"))
        assert [each.state for each in rig.operations.devices()] == ["well"]

    with_settings(tmp_path, test, cards("a", load_fault="kill"))


def test_quarantine_takes_no_request_whose_worker_the_kernel_ends_for_lack_of_ram(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("a")
        kernel_that_ends_processes(rig, tmp_path)
        large = job(model="a", max_tokens=1000)
        running = asyncio.create_task(answer(rig, large))
        for number in range(3):
            await until(lambda: rig.dispatcher.running("a") == 1)
            (worker,) = rig.manager.models["a"].serving
            rig.kill("a/0")
            await until(partial(_has_died, rig, number + 1))
            assert worker.worker is not None
            assert worker.worker.cause == "was ended by the kernel: the machine's RAM ran out"
        with pytest.raises(errors.OutOfMemory, match="each time"):
            await running
        assert large not in rig.dispatcher.delivery.quarantine
        assert not rig.manager.models["a"].given_up

    with_settings(tmp_path, test, cards("a"))


def _has_died(rig: Rig, times: int) -> bool:
    return rig.manager.models["a"].restarts == times


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate(handle)",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_out_of_memory_in_disguise_plans_with_more_memory_and_quarantines_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    raised: list[str] = []

    async def test(rig: Rig) -> None:
        await rig.operations.load("a")
        pid, raise_minimum = rig.pid("a/0"), rig.manager.facts.raise_minimum

        def noted(manifest: Manifest, replica: Replica) -> None:
            raised.append(replica.id)  # a fake model's memory is a setting: nothing else shows it
            raise_minimum(manifest, replica)

        monkeypatch.setattr(rig.manager.facts, "raise_minimum", noted)
        poison = job(f"!raise {text}", model="a")
        with pytest.raises(errors.OutOfMemory, match="ran out of memory"):
            await answer(rig, poison)
        assert raised == ["a/0"]
        assert poison not in rig.dispatcher.delivery.quarantine
        assert rig.pid("a/0") == pid  # the worker lives on
        assert rig.manager.models["a"].restarts == 0

    with_settings(tmp_path, test, cards("a"))
