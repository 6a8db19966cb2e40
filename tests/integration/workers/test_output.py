"""Output of workers: its end is kept, passed on, and costs no descriptor."""

import gc
import logging
import os
import threading
from pathlib import Path

import pytest

from tests.support.logs import CaughtLogs
from tests.support.pool_harness import Recorder, fake, with_pool
from tests.support.scheduling_rig import ECHO, Rig, answer, job, with_rig
from tests.support.wait import until
from workers.pool import StartFailed, WorkerPool


def test_worker_crash_leaves_its_last_output(tmp_path: Path, caplog: CaughtLogs) -> None:
    async def test(rig: Rig) -> None:
        with caplog.at_level(logging.WARNING), pytest.raises(Exception, match="worker"):
            await answer(rig, job("!crash"))
        (worker,) = [view for view in rig.operations.workers() if view.state == "failed"]
        assert worker.id == f"{ECHO}/0"
        assert worker.cause == "exited with code 13"
        assert worker.stderr == ["the fake engine was told to crash"]
        assert f"{ECHO}/0: the fake engine was told to crash" in caplog.text
        await until(lambda: [view.state for view in rig.operations.workers()] == ["ready"])

    with_rig(tmp_path, test)


def test_load_that_fails_leaves_its_traceback() -> None:
    async def test(pool: WorkerPool, _: Recorder) -> None:
        with pytest.raises(StartFailed, match="ValueError"):
            await pool.start("echo/0", fake(load_seconds=-1.0))
        (worker,) = pool.ended
        assert worker.state == "failed"
        assert worker.output.tail[-1] == "ValueError: sleep length must be non-negative"
        pool.forget_model("echo")
        assert pool.ended == []

    with_pool(test)


def test_worker_exit_leaves_no_descriptor_or_thread() -> None:
    threads = threading.active_count()

    async def test(pool: WorkerPool, recorder: Recorder) -> None:
        async def one() -> None:
            worker = await pool.start("echo/0", fake())
            worker.handle.kill()
            lost = len(recorder.lost)
            await recorder.until(lambda: len(recorder.lost) > lost)

        await one()
        await until(lambda: threading.active_count() <= threads)
        gc.collect()  # what other tests have left behind goes now, and not in between
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await one()
        await until(lambda: threading.active_count() <= threads)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)

    with_pool(test)
