"""Real processes under the pool: start, answer, die, fall silent, write nonsense, be orphaned."""

import asyncio
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from tests.support.pool_harness import Recorder, fake, with_pool
from tests.support.server import alive
from tests.support.wait import eventually, until
from workers.environment import worker_environment
from workers.pool import StartFailed, WorkerPool
from workers.protocol import Load, Sampling, TextDone, TextJob


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
        assert (done.text, done.finish_reason) == ("one two one", "length")
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
        assert seen.lost == ["silent for 1 s"]

    with_pool(test, heartbeat_timeout=1)


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
        with pytest.raises(StartFailed, match="did not load within"):
            await pool.start("echo/0", fake(load_seconds=30))

    with_pool(test, load_timeout=1.5)


def test_load_of_nothing_fails_with_a_reason() -> None:
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
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
    eventually(lambda: not any(alive(child) for child in children), 5)
