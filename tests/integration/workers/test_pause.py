"""A gateway that was stopped (suspend, SIGSTOP, a frozen machine) holds nothing against workers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAUSE = 3.0  #: seconds; three times what a worker may be silent, and longer than a load may take

#: Runs a pool, loads a worker slowly, answers a job for each line of its input.
GATEWAY = """
import asyncio, sys
from tests.support.pool_harness import Recorder, fake
from workers.launcher import SpawnLauncher
from workers.pool import WorkerPool
from workers.protocol import Sampling, TextDone, TextJob

async def main():
    seen = Recorder()
    pool = WorkerPool(SpawnLauncher(), seen, heartbeat_timeout=1, load_timeout=2.5, spare=False)
    watch = asyncio.create_task(pool.watch())
    loading = asyncio.create_task(pool.start("echo/0", fake(load_seconds=1)))
    while not seen.progress:
        await asyncio.sleep(0.02)
    print("loading", flush=True)
    worker = await loading
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        seen.events.clear()
        worker.send(TextJob(id="j", prompt="a", sampling=Sampling(max_tokens=1)))
        await seen.until(lambda: seen.lost or any(isinstance(e, TextDone) for e in seen.events))
        await asyncio.sleep(0.6)  # two looks of the watchdog
        print(seen.lost, flush=True)
    watch.cancel()
    await pool.close()

if __name__ == "__main__":
    asyncio.run(main())
"""


@contextmanager
def gateway(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    script = folder / "gateway.py"
    script.write_text(GATEWAY)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def stop_for_a_while(process: "subprocess.Popen[str]") -> None:
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(_PAUSE)
    os.kill(process.pid, signal.SIGCONT)


def test_pause_of_the_gateway_ends_no_load_and_no_worker(tmp_path: Path) -> None:
    with gateway(tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        stop_for_a_while(process)
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):
            stop_for_a_while(process)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "[]\n"
        process.stdin.close()
        assert process.wait(60) == 0
