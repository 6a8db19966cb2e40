"""Jobs on real workers are metered once each, whatever becomes of worker and client."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bitinglip import errors
from bitinglip.access.usage.amounts import MILLION, Amounts
from bitinglip.scheduling.event_log import EventLog
from tests.support.scheduling_rig import (
    ECHO,
    Rig,
    answer,
    events_of,
    idle,
    job,
    with_rig,
    with_settings,
)
from tests.support.wait import until

GB = 1_000_000_000


def metered(rig: Rig) -> Amounts:
    """Take the sum of what was metered since the last call."""
    rows = rig.meter.take_rows().values()
    return Amounts(*(sum(column) for column in zip(*rows, strict=True))) if rows else Amounts()


async def sampled(event_log: EventLog, tokens: int) -> None:
    """Read until so many tokens have come."""
    async for _ in event_log.batches():
        if sum(hasattr(each, "index") for each in event_log.events) >= tokens:
            return


@pytest.mark.parametrize("cards", [0, 1, 2])
def test_usage_of_devices_is_time_on_a_worker_times_its_accelerators(
    tmp_path: Path, cards: int
) -> None:
    async def test(rig: Rig) -> None:
        await answer(rig, job())  # it loads the model, which is not charged
        metered(rig)
        began = asyncio.get_running_loop().time()
        await answer(rig, job(max_tokens=6))
        seconds = asyncio.get_running_loop().time() - began
        used = metered(rig)
        assert (used.requests, used.prompt_tokens, used.completion_tokens) == (1, 3, 6)
        assert cards * 0.2 * MILLION <= used.gpu_us <= cards * seconds * MILLION
        assert rig.meter.expected_gpu(ECHO) <= used.gpu_us or not cards

    fake = {"memory_bytes": cards * GB or GB, "tokens_per_second": 20, "faults": True}
    values: dict[str, Any] = {"models": {ECHO: {"engine": "fake", "fake": fake}}}
    if cards:
        memory = int((1.5 if cards == 1 else 0.8) * GB)
        headroom = {"headroom_bytes": 0, "display_headroom_bytes": 0}
        fakes = [{"name": f"card{n}", "memory_bytes": memory} for n in range(cards)]
        values["devices"] = {"fake": fakes, **headroom}
    if cards == 2:
        fake["memory_bytes"] = int(1.2 * GB)
    with_settings(tmp_path, test, values)


def test_usage_of_a_job_that_lost_its_worker_and_ran_again_is_counted_once(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        with rig.dispatcher.open(job(max_tokens=8)) as event_log:
            await until(lambda: event_log.dispatched is not None)
            rig.kill()
            await event_log.result()
        await idle(rig)
        assert metered(rig) == Amounts(1, 3, 8)

    with_rig(tmp_path, test, tokens_per_second=20)


def test_usage_of_a_stream_that_lost_its_worker_is_what_was_streamed(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with rig.dispatcher.open(job(max_tokens=100, stream=True)) as event_log:
            await sampled(event_log, 3)
            rig.kill()
            with pytest.raises(errors.WorkerCrashed):
                await event_log.result()
        await idle(rig)
        used = metered(rig)
        assert used.requests == 0
        assert used.prompt_tokens == 3
        assert 3 <= used.completion_tokens < 100

    with_rig(tmp_path, test, tokens_per_second=20)


def test_usage_of_a_job_without_a_stream_is_told_by_its_worker_when_the_client_leaves(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        with rig.dispatcher.open(job(max_tokens=1000)) as event_log:
            # The step that tells of its start makes its first token, too; the rest takes long.
            await until(lambda: event_log.status == "running")
        await idle(rig)
        used = metered(rig)
        assert (used.requests, used.prompt_tokens) == (1, 3)
        assert 1 <= used.completion_tokens < 1000

    with_rig(tmp_path, test, tokens_per_second=50)


def test_usage_of_jobs_that_no_worker_had_is_nothing(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await answer(rig, job())
        metered(rig)
        with rig.dispatcher.open(job("!slow a", max_tokens=9)):
            with pytest.raises(errors.Timeout):
                await answer(rig, job(timeout=0.05))
            with rig.dispatcher.open(job()) as left:
                assert left.dispatched is None
            assert metered(rig) == Amounts()
        await idle(rig)
        assert metered(rig).requests == 1

    with_rig(tmp_path, test, batch_size=1)


def test_usage_of_jobs_that_the_end_of_the_server_cut_is_what_clients_got(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with rig.dispatcher.open(job(max_tokens=1000, stream=True)) as event_log:
            await sampled(event_log, 2)
            await rig.dispatcher.drain(0)
            assert [each async for each in _rest(event_log)]
            rig.dispatcher.close()
            used = metered(rig)
            assert used.requests == 0
            assert used.completion_tokens >= 2
        rig.dispatcher.close()
        await idle(rig)
        assert metered(rig) == Amounts()
        assert await events_of(event_log)

    async def _rest(event_log: EventLog) -> Any:
        for each in await events_of(event_log):
            yield each

    with_rig(tmp_path, test, tokens_per_second=50)
