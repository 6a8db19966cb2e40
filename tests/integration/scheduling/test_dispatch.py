"""Queue, dispatch, retries and books over real worker processes of the fake engine."""

import asyncio
from pathlib import Path

import pytest

from bitinglip import errors
from bitinglip.scheduling.event_log import Loading, Queued
from model_store.store import ModelStore
from tests.support.scheduling_rig import Rig, answer, events_of, idle, job, with_rig
from tests.support.wait import until
from workers.protocol import Failed, Started, TextDelta, TextDone


def test_load_is_started_by_the_first_request_which_sees_its_progress(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert rig.operations.status("demo-echo") == "available"
        with rig.dispatcher.open(job(stream=True)) as event_log:
            events = await events_of(event_log)
        assert isinstance(events[0], Queued)
        assert [e.progress for e in events if isinstance(e, Loading)][-1] == pytest.approx(1.0)
        kinds = [type(e) for e in events if not isinstance(e, Queued | Loading)]
        assert kinds == [Started, TextDelta, TextDelta, TextDelta, TextDone]
        assert rig.operations.status("demo-echo") == "ready"

    with_rig(tmp_path, test, load_seconds=0.2)


def test_load_is_shared_by_all_waiting_requests(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        answers = await asyncio.gather(*(answer(rig, job(f"n{n}")) for n in range(30)))
        assert answers == [f"n{n} n{n} n{n}" for n in range(30)]
        assert len(rig.operations.workers()) == 1

    with_rig(tmp_path, test, load_seconds=0.2, batch_size=4)


def test_admission_refuses_at_once_when_the_queue_is_full(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        running = [asyncio.create_task(answer(rig, job(max_tokens=8))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(errors.QueueFull), rig.dispatcher.open(job()):
            pass
        await asyncio.gather(*running)

    with_rig(tmp_path, test, max_waiting=3, batch_size=1, tokens_per_second=50, load_seconds=0.1)


def test_admission_lets_other_keys_in_beside_a_key_that_fills_the_queue(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        running = [asyncio.create_task(answer(rig, job(max_tokens=2))) for _ in range(50)]
        await asyncio.sleep(0)
        rig.dispatcher.overload.value = 1.0
        with pytest.raises(errors.QueueFull), rig.dispatcher.open(job()):
            pass
        assert await answer(rig, job(key_id="light", max_tokens=2))
        answered = [one for one in running if one.done() and not one.exception()]
        assert len(answered) < 4, "and it did not wait for them"
        await asyncio.gather(*running, return_exceptions=True)

    with_rig(tmp_path, test, max_waiting=32, batch_size=1, tokens_per_second=50)


def test_disconnect_of_a_reader_frees_its_slot(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("demo-echo")
        with rig.dispatcher.open(job(max_tokens=100_000, stream=True)) as event_log:
            async for events in event_log.batches():
                if any(isinstance(e, TextDelta) for e in events):
                    break
        assert await answer(rig, job()) == "a b c"

    with_rig(tmp_path, test, batch_size=1, tokens_per_second=100)


def test_disconnect_of_a_waiting_reader_means_its_job_never_runs(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        first = asyncio.create_task(answer(rig, job(max_tokens=20)))
        await asyncio.sleep(0)
        with rig.dispatcher.open(job("!crash")):
            assert rig.dispatcher.queued >= 1
        assert (await first).startswith("a b c")
        assert rig.operations.workers()[0].restarts == 0

    with_rig(tmp_path, test, batch_size=1, tokens_per_second=100)


def test_retry_after_a_killed_worker_answers_unstreamed_requests(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("demo-echo")
        silent = [asyncio.create_task(answer(rig, job(f"n{n}", max_tokens=40))) for n in range(10)]
        with rig.dispatcher.open(job("s", max_tokens=400, stream=True)) as event_log:
            reading = asyncio.create_task(events_of(event_log))
            await until(lambda: any(isinstance(e, TextDelta) for e in event_log.events))
            await asyncio.sleep(0)  # what it has read cannot be taken back
            rig.kill()
            assert await asyncio.gather(*silent) == [" ".join([f"n{n}"] * 40) for n in range(10)]
            events = await reading
        assert len([e for e in events if isinstance(e, TextDone | Failed)]) == 1
        final = events[-1]
        assert isinstance(final, Failed)
        assert final.code == "WORKER_CRASHED"
        assert rig.operations.workers()[0].restarts == 1

    with_rig(tmp_path, test, tokens_per_second=100)


@pytest.mark.parametrize("prompt", ["!crash", "!garbage", "!hang"])
def test_retry_ends_with_the_second_worker_that_a_request_kills(
    tmp_path: Path, prompt: str
) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(errors.WorkerCrashed) as crash:
            await answer(rig, job(prompt))
        assert crash.value.details == {"quarantined": True}
        assert await answer(rig, job()) == "a b c"
        assert rig.operations.workers()[0].restarts == 2

    with_rig(tmp_path, test)


def test_out_of_memory_fails_the_request_and_the_worker_lives(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(errors.OutOfMemory):
            await answer(rig, job("!oom"))
        assert await answer(rig, job()) == "a b c"
        assert rig.operations.workers()[0].restarts == 0

    with_rig(tmp_path, test)


def test_restart_by_the_operator_is_no_failure_of_the_model(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("demo-echo")
        for _ in range(5):
            await rig.operations.restart_worker("demo-echo/0")
            assert await answer(rig, job()) == "a b c"
        assert rig.operations.status("demo-echo") == "ready"

    with_rig(tmp_path, test)


def test_load_of_a_removed_model_fails_the_waiting_requests(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        waiting = asyncio.create_task(answer(rig, job()))
        await asyncio.sleep(0)
        ModelStore(tmp_path / "models").remove("demo-echo")
        with pytest.raises(errors.InvalidModel):
            await waiting
        assert rig.operations.status("demo-echo") == "error"

    with_rig(tmp_path, test)


def test_deadline_ends_a_running_request_and_a_waiting_one(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("demo-echo")
        running = asyncio.create_task(answer(rig, job(max_tokens=1000, timeout=0.3)))
        await asyncio.sleep(0.05)
        with pytest.raises(errors.Timeout):
            await answer(rig, job(timeout=0.1))
        with pytest.raises(errors.Timeout):
            await running

    with_rig(tmp_path, test, batch_size=1, tokens_per_second=20)


def test_cancel_by_id_ends_it_as_cancelled(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("demo-echo")
        one = job(max_tokens=1000)
        running = asyncio.create_task(answer(rig, one))
        await asyncio.sleep(0.1)
        assert rig.dispatcher.cancel(one.id)
        with pytest.raises(errors.TaskCancelled):
            await running
        assert not rig.dispatcher.cancel(one.id)

    with_rig(tmp_path, test, tokens_per_second=20)


def test_drain_refuses_new_work_and_lets_running_work_end(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("demo-echo")
        running = asyncio.create_task(answer(rig, job(max_tokens=20)))
        await asyncio.sleep(0.05)
        drain = asyncio.create_task(rig.dispatcher.drain(60))
        await asyncio.sleep(0)
        with pytest.raises(errors.ShuttingDown):
            await answer(rig, job())
        assert len((await running).split()) == 20
        await drain

    with_rig(tmp_path, test, tokens_per_second=50)


def test_unload_of_a_busy_model_is_refused(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("demo-echo")
        one = job(max_tokens=1000)
        running = asyncio.create_task(answer(rig, one))
        await until(lambda: rig.dispatcher.running("demo-echo"))
        with pytest.raises(errors.ModelInUse):
            await rig.operations.unload("demo-echo")
        assert rig.dispatcher.cancel(one.id)
        with pytest.raises(errors.TaskCancelled):
            await running
        await idle(rig)
        await rig.operations.unload("demo-echo")
        assert rig.operations.workers() == []
        assert rig.operations.status("demo-echo") == "available"

    with_rig(tmp_path, test, tokens_per_second=50)
