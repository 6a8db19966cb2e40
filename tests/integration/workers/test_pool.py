"""Real processes under the pool: start, answer, die, fall silent, write nonsense, be orphaned."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.support import hostile_workers
from tests.support.logs import CaughtLogs
from tests.support.pool_harness import Recorder, fake, with_pool
from tests.support.server import alive
from tests.support.wait import eventually, until
from workers.environment import worker_environment
from workers.faults import FAULTS
from workers.pool import StartFailed, WorkerPool
from workers.protocol import Final, Load, Sampling, TextDone, TextJob


def job(prompt: str, max_tokens: int = 3) -> TextJob:
    return TextJob(id="j1", prompt=prompt, sampling=Sampling(max_tokens=max_tokens))


def test_worker_loads_answers_and_exits() -> None:
    async def test(pool: WorkerPool, seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake(load_seconds=0.1))
        assert worker.ready is not None
        assert worker.ready.slots == 64
        assert seen.progress[-1] == pytest.approx(1.0)
        worker.send(job("one two"))
        await seen.until(lambda: any(isinstance(e, TextDone) for e in seen.events))
        done = seen.events[-1]
        assert isinstance(done, TextDone)
        assert (done.text, done.choices[0].finish_reason) == ("one two one", "length")
        await pool.stop(worker)
        assert worker.state == "stopped"
        assert not psutil.pid_exists(worker.pid)
        assert seen.lost == []

    with_pool(test)


@pytest.mark.parametrize(
    ("prompt", "cause"),
    [("!crash", "exited with code 13"), ("!garbage", "wrote a malformed frame")],
)
def test_worker_crash_is_reported_once_with_its_cause(prompt: str, cause: str) -> None:
    async def test(pool: WorkerPool, seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake())
        worker.send(job(prompt))
        await seen.until(lambda: seen.lost)
        assert len(seen.lost) == 1
        assert seen.lost[0].startswith(cause)
        assert pool.workers == []

    with_pool(test)


@pytest.mark.parametrize(
    ("text", "name", "cause"),
    [
        ("CUDA error: device-side assert triggered", "context lost", "lost its CUDA context"),
        ("CUDA error: an illegal memory access", "context lost", "lost its CUDA context"),
        ("CUDA error: unknown error", "unknown error", "met an unknown error of CUDA"),
        ("mat1 and mat2 do not fit", None, "failed"),
    ],
)
def test_worker_that_an_error_ends_tells_its_class_and_answers_nothing_of_the_step(
    text: str, name: str | None, cause: str
) -> None:
    async def test(pool: WorkerPool, seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake(tokens_per_second=1000))
        worker.send(job(f"!raise {text}"))
        worker.send(TextJob(id="beside", prompt="a", sampling=Sampling(max_tokens=1)))
        await seen.until(lambda: seen.lost)
        assert seen.lost == [f"{cause} (RuntimeError)"]
        assert (worker.fault.name if worker.fault else None) == name
        assert [e for e in seen.events if isinstance(e, Final)] == []
        assert any(text in line for line in worker.output.tail)
        assert name is None or any(f"'{name}'" in line for line in worker.output.tail)

    with_pool(test)


def test_worker_whose_load_meets_a_lost_card_says_so() -> None:
    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        with pytest.raises(StartFailed, match=r"lost its card.*does not answer") as failure:
            await pool.start("echo/0", fake(load_fault="device"))
        assert failure.value.fault is FAULTS["card lost"]

    with_pool(test)


def test_worker_ends_at_once_after_an_error_without_any_clean_up(tmp_path: Path) -> None:
    """Check that no exit handler runs, and no thread is joined, that could use the card again."""
    trace = tmp_path / "cleaned"
    program = (
        "import atexit, os, threading, time\n"
        "from workers.process import _end_at_once\n"
        "from workers.protocol import Broken\n"
        f"atexit.register(open, {str(trace)!r}, 'w')\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "error = RuntimeError('CUDA error: unknown error')\n"
        "_end_at_once(1, Broken(fault='unknown error', error='RuntimeError'), error)\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert b"broken" in ended.stdout
    assert b"RuntimeError: CUDA error: unknown error" in ended.stderr
    assert not trace.exists()


def test_worker_kill_is_noticed_at_once() -> None:
    async def test(pool: WorkerPool, seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake())
        os.kill(worker.pid, signal.SIGKILL)
        await seen.until(lambda: seen.lost)
        assert seen.lost == ["was ended by signal 9"]

    with_pool(test)


@pytest.mark.parametrize("how", ["hang", "stop"])
def test_heartbeat_timeout_kills_a_silent_worker(how: str) -> None:
    async def test(pool: WorkerPool, seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake())
        if how == "hang":
            worker.send(job("!hang"))
        else:
            os.kill(worker.pid, signal.SIGSTOP)
        await seen.until(lambda: seen.lost)
        stopped = ": a signal has stopped its process" if how == "stop" else ""
        assert seen.lost == ["silent for 1 s" + stopped]

    with_pool(test, heartbeat_timeout=1)


def test_load_that_is_stopped_does_not_take_the_load_timeout() -> None:
    """A load that holds the interpreter for long is as silent, but its process runs."""

    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        start = asyncio.ensure_future(pool.start("echo/0", fake(load_seconds=60)))
        await until(lambda: any(each.state == "loading" for each in pool.workers))
        os.kill(pool.workers[0].pid, signal.SIGSTOP)
        with pytest.raises(StartFailed, match="was stopped by a signal for 1 s"):
            await start

    with_pool(test, heartbeat_timeout=1, load_timeout=600)


def test_worker_kill_with_a_full_queue_leaves_no_thread() -> None:
    async def test(pool: WorkerPool, seen: Recorder) -> None:
        before = threading.active_count()
        worker = await pool.start("echo/0", fake())
        os.kill(worker.pid, signal.SIGSTOP)
        worker.send(job("word " * 100_000))
        await asyncio.sleep(0.2)
        os.kill(worker.pid, signal.SIGKILL)
        await seen.until(lambda: seen.lost)
        await until(lambda: threading.active_count() <= before)

    with_pool(test)


def test_load_timeout_fails_the_load_and_leaves_nothing() -> None:
    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        with pytest.raises(StartFailed, match="made no progress with its load"):
            await pool.start("echo/0", fake(load_seconds=30))

    with_pool(test, load_timeout=1.5)


def test_load_that_reads_its_files_is_not_ended() -> None:
    """It tells no progress: what it reads is seen from outside."""

    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake())
        assert worker.state == "ready"

    with_pool(test, entry=hostile_workers.entry(hostile_workers.reads_slowly), load_timeout=1)


def test_load_without_an_engine_fails_with_a_reason() -> None:
    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        spec = Load(model="none", engine="no-such-engine", path="/nowhere")
        with pytest.raises(StartFailed) as failure:
            await pool.start("none/0", spec)
        assert failure.value.code == "MODEL_LOAD_FAILED"
        assert (
            failure.value.message == "There is no engine for models of the kind 'no-such-engine'."
        )

    with_pool(test)


def test_environment_of_a_worker_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("BITINGLIP_API_KEY", "canary")
    monkeypatch.setenv("NVIDIA_API_KEY", "canary")
    monkeypatch.setenv("TORCH_HUB_TOKEN", "canary")
    assert "canary" not in worker_environment(dict(os.environ), "6.1.0").values()

    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake())
        environ = psutil.Process(worker.pid).environ()
        assert "canary" not in environ.values()
        assert environ["HF_HUB_OFFLINE"] == "1"
        assert os.environ["HF_TOKEN"] == "canary"

    with_pool(test)


def test_environment_of_a_worker_is_that_of_the_libraries_settings(
    monkeypatch: pytest.MonkeyPatch, caplog: CaughtLogs
) -> None:
    """They reach the process itself, and what does not is said once, by name alone."""
    given = {"NCCL_P2P_DISABLE": "1", "MALLOC_ARENA_MAX": "2", "CUDNN_LOGINFO_DBG": "0"}
    for name, value in {**given, "TRANSFORMERS_CACHE": "elsewhere"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setattr("platform.release", lambda: "6.1.0-18-amd64")

    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        for number in range(2):
            worker = await pool.start(f"echo/{number}", fake())
            environ = psutil.Process(worker.pid).environ()
            assert given.items() <= environ.items()
            assert environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
            assert "TRANSFORMERS_CACHE" not in environ

    with_pool(test)
    told = [each.message for each in caplog.records if "TRANSFORMERS_CACHE" in each.message]
    assert len(told) == 1
    assert "elsewhere" not in told[0]
    assert "NCCL_P2P_DISABLE" not in told[0]


PARENT = """
import asyncio
from workers.launcher import SpawnLauncher
from workers.pool import WorkerPool
from tests.support.pool_harness import Recorder, fake

async def main():
    pool = WorkerPool(
        SpawnLauncher(), Recorder(), heartbeat_timeout=10, load_timeout=20, spare=False
    )
    worker = await pool.start("echo/0", fake())
    print(worker.pid, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_worker_does_not_outlive_its_gateway(tmp_path: "os.PathLike[str]") -> None:
    script = os.path.join(tmp_path, "parent.py")
    with open(script, "w") as file:
        file.write(PARENT)
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        children = psutil.Process(parent.pid).children(recursive=True)
        assert psutil.pid_exists(pid)
        parent.kill()
        parent.wait()
    eventually(lambda: not any(alive(child) for child in children))
