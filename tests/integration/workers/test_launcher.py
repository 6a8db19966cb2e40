"""Start of worker processes: what they inherit from the gateway, and what ends with them."""

import asyncio
import gc
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from bitinglip.confinement import spawn_launcher
from bitinglip.home import Home
from bitinglip.settings import Settings
from tests.support.logs import CaughtLogs
from tests.support.pool_harness import Recorder, fake, with_pool
from tests.support.wait import eventually
from workers.folders import WorkFolders
from workers.framing import command_frame, encode_commands
from workers.launcher import SpawnLauncher
from workers.pool import StartFailed, WorkerPool
from workers.protocol import Import

#: Breaks its standard streams as argv says, then has a worker answer; its exit code tells.
GATEWAY = """
import asyncio, os, sys
from tests.support.pool_harness import Recorder, fake, with_pool
from workers.protocol import Sampling, TextDone, TextJob

async def test(pool, seen):
    worker = await pool.start("echo/0", fake())
    worker.send(TextJob(id="j", prompt="a", sampling=Sampling(max_tokens=1)))
    await seen.until(lambda: any(isinstance(event, TextDone) for event in seen.events))

if __name__ == "__main__":
    match sys.argv[1]:
        case "closed":
            for stream in (0, 1, 2):
                os.close(stream)
        case "broken":  # its output has no reader, and something is left to be flushed
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            sys.stdout = open(1, "w", closefd=False)
            sys.stdout.write("x")
        case "none":
            sys.stdout = sys.stderr = sys.stdin = None
    with_pool(test)
    os._exit(7)
"""


@pytest.mark.parametrize("streams", ["closed", "broken", "none"])
def test_worker_starts_whatever_became_of_the_gateways_streams(
    tmp_path: Path, streams: str
) -> None:
    script = tmp_path / "gateway.py"
    script.write_text(GATEWAY)
    done = subprocess.run(
        [sys.executable, str(script), streams],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        timeout=60,
        check=False,
    )
    assert done.returncode == 7, done.stderr.decode()


def test_environment_of_the_gateway_is_whole_while_workers_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BITINGLIP_CANARY", "sings")
    over = threading.Event()
    missed: list[str | None] = []

    def read() -> None:
        while not over.is_set():
            if (found := os.environ.get("BITINGLIP_CANARY")) != "sings":
                missed.append(found)

    reader = threading.Thread(target=read)
    reader.start()

    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        for number in range(3):
            await pool.start(f"echo/{number}", fake())

    try:
        with_pool(test)
    finally:
        over.set()
        reader.join()
    assert missed == []


def test_worker_has_a_session_of_its_own_and_says_its_name() -> None:
    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake())
        assert os.getsid(worker.pid) == os.getpgid(worker.pid) == worker.pid
        assert psutil.Process(worker.pid).cmdline()[-1] == "bitinglip worker echo/0"

    with_pool(test)


@contextmanager
def descriptors(spare: int) -> Iterator[None]:
    """Let this process open so many further descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("spare", [0, 3, 7, 9])
def test_load_without_descriptors_fails_and_the_next_one_works(spare: int, tmp_path: Path) -> None:
    folders = WorkFolders(tmp_path / "work")

    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        gc.collect()  # what is left of other tests is not closed in between
        before = len(os.listdir("/proc/self/fd"))
        with descriptors(spare), pytest.raises(StartFailed, match="Too many open files"):
            await pool.start("echo/0", fake())
        assert pool.workers == []
        await asyncio.to_thread(eventually, lambda: not list(tmp_path.glob("work/*")))
        await asyncio.to_thread(eventually, lambda: len(os.listdir("/proc/self/fd")) <= before)
        await pool.start("echo/0", fake())

    with_pool(test, SpawnLauncher(folders=folders))


def test_spare_that_cannot_be_started_is_left_out(caplog: CaughtLogs) -> None:
    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        pool._keep_spare = True
        with descriptors(2):
            pool.warm_spare()
        assert pool.workers == []

    with_pool(test)
    assert "no spare worker could be started: Too many open files" in caplog.text


def test_worker_whose_gateway_died_before_it_looked_ends_itself() -> None:
    """The kernel's signal tells of a parent's death only from the moment that it is asked for."""
    jobs, send = os.pipe()
    events = os.pipe()
    death = os.pipe()
    try:
        inherited = (jobs, events[1], death[0])
        program = f"from workers.process import worker_main; worker_main{inherited}"
        os.write(send, command_frame(encode_commands([Import(gateway=2**30, modules=())])))
        done = subprocess.run(
            [sys.executable, "-c", program],
            pass_fds=inherited,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        os.set_blocking(events[0], False)
        with pytest.raises(BlockingIOError):  # it has not said Imported
            os.read(events[0], 1)
    finally:
        for fd in (jobs, send, *events, *death):
            os.close(fd)


@pytest.mark.parametrize(("operators", "given"), [(None, "1"), ("0", "0")])
def test_environment_of_a_setting_reaches_workers_unless_the_operator_chose(
    operators: str | None, given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "CUDA_DISABLE_PERF_BOOST"
    monkeypatch.delenv(name, raising=False)
    if operators is not None:
        monkeypatch.setenv(name, operators)

    def environ(perf_boost: bool) -> dict[str, str]:
        settings = Settings.model_validate({"devices": {"perf_boost": perf_boost}})
        found: dict[str, str] = {}

        async def test(pool: WorkerPool, _: Recorder) -> None:
            worker = await pool.start("echo/0", fake())
            found.update(psutil.Process(worker.pid).environ())

        with_pool(test, spawn_launcher(settings, Home(tmp_path)))
        return found

    assert environ(perf_boost=False)[name] == given
    assert environ(perf_boost=True).get(name) == operators


def test_worker_that_is_idle_sleeps() -> None:
    async def test(pool: WorkerPool, _: Recorder) -> None:
        worker = await pool.start("echo/0", replace(fake(), heartbeat_seconds=1.0))
        process = psutil.Process(worker.pid)

        def look() -> tuple[float, int]:
            times = process.cpu_times()
            tasks = Path(f"/proc/{worker.pid}/task").glob("*/status")
            lines = [line.split() for task in tasks for line in task.read_text().splitlines()]
            switches = sum(int(line[1]) for line in lines if line[0].startswith("voluntary"))
            return times.user + times.system, switches

        async with asyncio.timeout(60):
            while True:  # the first second or two may have something left of the load
                before = look()
                await asyncio.sleep(1)
                seconds, switches = (now - then for now, then in zip(look(), before, strict=True))
                # A heartbeat or two; one that polls would have thousands of switches, each second.
                if seconds < 0.1 and switches < 50:
                    return

    with_pool(test)
