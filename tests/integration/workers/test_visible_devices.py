"""Visible devices: a worker process sees its own cards only, whatever its libraries do at
import."""

import asyncio
import json
import select
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.models.text import make_tiny_model
from tests.support.pool_harness import Recorder, fake, with_pool
from tests.support.wait import eventually
from workers.engines.registry import ENGINES
from workers.launcher import SpawnLauncher
from workers.pool import SPARE_IMPORTS, WorkerPool
from workers.protocol import Load
from workers.worker import Worker

pytestmark = pytest.mark.long_file
KINDS = ("text", "speech", "transcription")

#: Imports modules in a process in which all that would start CUDA's driver raises, and prints
#: what each of them raised.
TRAPPED = """
import importlib, json, sys, traceback
import torch
def trap(*_arguments, **_options):
    raise AssertionError("CUDA's driver would start here")
for owner, name in (
    (torch.cuda, "is_available"), (torch.cuda, "device_count"), (torch.cuda, "_lazy_init"),
    (torch.cuda, "get_device_capability"), (torch.accelerator, "is_available"),
):
    setattr(owner, name, trap)
raised = {}
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except BaseException:
        raised[module] = traceback.format_exc()
print(json.dumps(raised))
"""

#: Found by a worker through PYTHONPATH: a driver that was started already.
STARTED_DRIVER = """
import ctypes
class CDLL(ctypes.CDLL):
    def __init__(self, name, *arguments, **options):
        if name == "libcuda.so.1":
            self.cuDeviceGetCount = lambda _count: 0
        else:
            super().__init__(name, *arguments, **options)
ctypes.CDLL = CDLL
"""


@pytest.fixture(scope="module")
def raised() -> dict[str, str]:
    """Provide the errors that each engine's imports raise, all in one process: imports take
    seconds."""
    modules = [module for kind in KINDS for module in ENGINES[kind].preimport]
    command = [sys.executable, "-c", TRAPPED, *modules]
    done = subprocess.run(command, check=True, timeout=100, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_spare_imports_do_not_start_the_driver(kind: str, raised: dict[str, str]) -> None:
    """Importing diffusers asks for an accelerator, so an image worker's cards are in its
    environment before, or PYTORCH_NVML_BASED_CUDA_CHECK has the question answered by NVML."""
    (module,) = ENGINES[kind].preimport
    assert module not in raised, raised[module]


def test_spare_imports_are_among_those_that_do_not_start_the_driver() -> None:
    assert SPARE_IMPORTS in [ENGINES[kind].preimport for kind in KINDS]


@pytest.mark.parametrize("visible", ["1", "0,1", ""])
def test_cards_of_a_worker_are_in_its_environment_from_the_start(visible: str) -> None:
    worker = SpawnLauncher().launch("echo", (), visible)
    try:
        assert select.select([worker.events_fd], [], [], 30)[0], "it has not said Imported"
        assert psutil.Process(worker.pid).environ()["CUDA_VISIBLE_DEVICES"] == visible
    finally:
        worker.kill()
        eventually(lambda: worker.reap() == -9)
        worker.close()


def test_cards_are_hidden_from_a_worker_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake())
        assert psutil.Process(worker.pid).environ()["CUDA_VISIBLE_DEVICES"] == ""

    with_pool(test)


def test_spare_whose_driver_has_started_makes_way_for_a_fresh_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STARTED_DRIVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    spec = Load(model="tiny", engine="text", path=str(make_tiny_model("llama", tmp_path)))

    async def run() -> Worker:
        pool = WorkerPool(
            SpawnLauncher(), Recorder(), heartbeat_timeout=10, load_timeout=60, spare=True
        )
        pool.warm_spare()
        (spare,) = pool.workers
        worker = await pool.start("tiny/0", spec)
        assert worker is not spare
        assert (spare.state, worker.state) == ("failed", "ready")
        assert pool.ended == []  # nothing to show: the model is there
        await pool.close()
        return worker

    worker = asyncio.run(run())
    assert not psutil.pid_exists(worker.pid)
