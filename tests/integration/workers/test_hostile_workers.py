"""Workers that are broken or hostile: none stops, fills or ends the gateway, and all are ended."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from tests.support import hostile_workers
from tests.support.awake import AwakeClock
from tests.support.hostile_workers import Entry, entry
from tests.support.pool_harness import Recorder, fake, with_pool
from tests.support.server import alive
from tests.support.wait import until
from workers.pool import StartFailed, WorkerPool
from workers.protocol import Sampling, TextJob
from workers.worker import Worker

JOB = TextJob(id="j", prompt="x", sampling=Sampling(max_tokens=1))
_MOST_LAG = 2.0  #: seconds that the loop may stand still, on a busy machine


@asynccontextmanager
async def responsive() -> AsyncIterator[None]:
    """Fail if the event loop stands still meanwhile, or if a callback of it raises."""
    loop = asyncio.get_running_loop()
    raised: list[object] = []
    loop.set_exception_handler(lambda _, context: raised.append(context))
    worst = 0.0

    async def tick(clock: AwakeClock) -> None:
        nonlocal worst
        while True:
            before = clock()
            await asyncio.sleep(0.01)
            worst = max(worst, clock() - before)

    with AwakeClock() as clock:
        ticks = asyncio.create_task(tick(clock))
        yield
        ticks.cancel()
    assert worst < _MOST_LAG
    assert raised == []


async def left_behind(worker: Worker) -> psutil.Process | None:
    """Return the pid of the child that a hostile worker has left, from its output."""
    (pid,) = worker.output.tail
    try:
        return psutil.Process(int(pid))
    except psutil.NoSuchProcess:
        return None


async def gone(process: psutil.Process | None) -> None:
    """Wait until a process does not run any more."""
    await until(lambda: process is None or not alive(process))


@pytest.mark.parametrize("pidfd", [True, False])
@pytest.mark.parametrize(
    "evil", [hostile_workers.closes_all_once_ready, hostile_workers.forks_and_exits_once_ready]
)
def test_worker_that_hides_its_end_is_lost_and_stops_nothing(
    evil: Entry, pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)

    async def test(pool: WorkerPool, seen: Recorder) -> None:
        async with responsive():
            worker = await pool.start("evil/0", fake())
            worker.send(JOB)
            await seen.until(lambda: seen.lost)
        assert len(seen.lost) == 1
        assert pool.workers == []
        assert not psutil.pid_exists(worker.pid)
        if evil is hostile_workers.forks_and_exits_once_ready:
            assert seen.lost == ["exited with code 0"]
            await gone(await left_behind(worker))

    with_pool(test, entry=entry(evil))


@pytest.mark.parametrize(
    "evil",
    [hostile_workers.closes_all_while_it_starts, hostile_workers.forks_and_exits_while_it_starts],
)
def test_load_fails_when_its_worker_hides_its_end(evil: Entry) -> None:
    async def test(pool: WorkerPool, seen: Recorder) -> None:
        async with responsive():
            with pytest.raises(StartFailed, match=r"exited with code 0|ended by signal 9"):
                await pool.start("evil/0", fake())
        assert pool.workers == []
        assert seen.lost == []
        (worker,) = pool.ended
        if evil is hostile_workers.forks_and_exits_while_it_starts:
            await gone(await left_behind(worker))

    with_pool(test, entry=entry(evil), load_timeout=60)


@pytest.mark.parametrize(
    ("evil", "cause"),
    [
        (hostile_workers.nests_deeply, "wrote a malformed frame"),
        (hostile_workers.holds_more_than_can_be_counted, "wrote a malformed frame"),
        (hostile_workers.says_again_that_it_is_imported, "wrote a malformed frame (Imported while"),
        (
            hostile_workers.says_again_that_it_is_ready,
            "wrote a malformed frame (Ready while ready)",
        ),
        (hostile_workers.sends_one_frame_that_does_not_end, "wrote a malformed frame"),
        (hostile_workers.trickles, "silent for 1 s"),
        (hostile_workers.leaves_a_child_that_floods, "exited with code 0"),
    ],
)
def test_worker_that_writes_invalid_frames_is_ended(evil: Entry, cause: str) -> None:
    async def test(pool: WorkerPool, seen: Recorder) -> None:
        async with responsive():
            worker = await pool.start("evil/0", fake())
            worker.send(JOB)
            await seen.until(lambda: seen.lost)
        assert seen.lost[0].startswith(cause)
        assert len(seen.lost[0]) < 300
        assert not psutil.pid_exists(worker.pid)

    # Only one is to be found out by its silence: the others may take their time.
    with_pool(test, entry=entry(evil), heartbeat_timeout=1 if "silent" in cause else 30)


@pytest.mark.parametrize("evil", [hostile_workers.floods, hostile_workers.floods_its_output])
def test_worker_that_floods_takes_neither_the_loop_nor_memory(evil: Entry) -> None:
    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        process = psutil.Process()
        async with responsive():
            worker = await pool.start("evil/0", fake())
            before = process.memory_info().rss
            worker.send(JOB)
            await asyncio.sleep(1.5)
            assert process.memory_info().rss - before < 100_000_000
            await pool.kill(worker, "was flooding")

    with_pool(test, entry=entry(evil))


def test_worker_that_takes_no_jobs_is_ended() -> None:
    async def test(pool: WorkerPool, seen: Recorder) -> None:
        worker = await pool.start("evil/0", fake())
        async with asyncio.timeout(60):
            while not seen.lost:
                worker.send(JOB)
                await asyncio.sleep(0.02)

    with_pool(test, entry=entry(hostile_workers.reads_no_jobs))
