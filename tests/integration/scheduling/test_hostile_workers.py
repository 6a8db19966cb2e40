"""A hostile worker's events leave no job open, hold no memory, and reach no other client."""

from pathlib import Path

import psutil
import pytest

from bitinglip import errors
from tests.support import hostile_workers
from tests.support.hostile_workers import entry
from tests.support.scheduling_rig import ECHO, Rig, answer, job, with_rig, with_settings
from tests.support.wait import until
from workers.protocol import Cancelled


def test_worker_that_answers_as_another_kind_is_ended(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(errors.WorkerCrashed, match="SpeechDone for a TextJob"):
            await answer(rig, job())
        assert not any(rig.dispatcher.books().values())

    with_rig(tmp_path, test, entry=entry(hostile_workers.answers_as_another_kind))


def test_worker_that_answers_without_end_fills_no_memory(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        before = psutil.Process().memory_info().rss
        with pytest.raises(errors.WorkerCrashed, match="more events for one job"):
            await answer(rig, job(stream=True))
        assert psutil.Process().memory_info().rss - before < 400_000_000

    with_rig(tmp_path, test, entry=entry(hostile_workers.floods_a_job))


def test_worker_that_ends_no_cancelled_job_is_ended_itself(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with rig.dispatcher.open(job()) as event_log:
            await until(lambda: event_log.dispatched is not None)
        assert any(rig.dispatcher.books().values())  # its slot is taken until the worker says so
        await until(lambda: not any(rig.dispatcher.books().values()))
        await until(lambda: rig.operations.workers()[0].restarts == 1)

    values = {"workers": {"heartbeat_timeout": 1}, "models": {ECHO: {}}}
    with_settings(tmp_path, test, values, entry=entry(hostile_workers.ends_no_job))


def test_worker_that_forks_and_exits_gives_its_memory_back(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(errors.WorkerCrashed):
            await answer(rig, job())
        await rig.operations.unload(ECHO)
        assert rig.operations.reservations() == []

    with_rig(tmp_path, test, entry=entry(hostile_workers.forks_and_exits_once_ready))


def test_release_of_a_job_does_not_depend_on_its_figures(tmp_path: Path) -> None:
    """The protocol lets no such figure through; the books hold all the same."""

    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        one = job(max_tokens=1000)
        (replica,) = rig.manager.serving(ECHO)
        assert replica.worker is not None
        with rig.dispatcher.open(one) as event_log:
            ended = Cancelled(id=one.id, completion_tokens=-5)  # no counter takes it
            rig.dispatcher.delivery.on_events(replica.worker, [ended])
            assert event_log.final is ended
        assert not any(rig.dispatcher.books().values())
        assert await answer(rig, job()) == "a b c"

    with_rig(tmp_path, test, tokens_per_second=10)
