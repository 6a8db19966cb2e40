"""Tells whether a worker on the card works while it is confined, and what that costs.

Until it has passed on a card, ``workers.confine: auto`` takes only what can hurt no driver there.
"""

import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.model_files import make_files
from benchmarks.gpu.recorder import Recorder
from workers.confinement import Kernel
from workers.environment import worker_environment
from workers.folders import WorkFolders
from workers.launcher import SpawnLauncher
from workers.pool import WorkerPool
from workers.protocol import (
    Confinement,
    ConfineMode,
    Failed,
    JobEvent,
    Load,
    Sampling,
    TextDone,
    TextJob,
)
from workers.worker import Worker

_MODULE = "benchmarks.gpu.confined_program"
_STAGES = ("nothing", "limits", "files", "system calls", "everything")
_PATIENCE = 60.0
_TOKENS = {"real": 128, "tiny": 16}


def check(record: Recorder) -> None:
    """Try each kind of confinement apart, then a worker with all of them beside one without.

    Raises AssertionError if something works without confinement only.
    """
    kernel = Kernel.find()
    record.figure("Landlock", str(kernel.landlock or "none"), note="its version in this kernel")
    record.figure("filter of system calls", "there" if kernel.seccomp else "none")
    folder = record.folder / "confinement"
    folder.mkdir(exist_ok=True)
    failed = _try_stages(record, folder)
    if kernel.lacks():
        record.figure("a confined worker", "not tried", note="; ".join(kernel.lacks()))
        return
    answers = {mode: asyncio.run(_run(record, folder, mode)) for mode in _modes(record)}
    assert not failed, f"the device does not work under: {failed}"
    assert len(set(answers.values())) == 1, f"answers differ: {answers}"


def _modes(record: Recorder) -> tuple[ConfineMode, ...]:
    return ("require",) if record.tiny else ("off", "require")


# ---- one kind at a time --------------------------------------------------------------------------


def _try_stages(record: Recorder, folder: Path) -> list[str]:
    """Run the program once for each stage, all at once; gives the stages that failed."""
    names = ("everything",) if record.tiny else _STAGES
    runs = {name: _start(name, record.device, folder) for name in names}
    failed = []
    for name, process in runs.items():
        output, errors = process.communicate(timeout=_PATIENCE)
        if process.returncode:
            failed.append(name)
            record.figure(f"under {name}", "fails", note=(errors.splitlines() or ["?"])[-1][:200])
            continue
        found = json.loads(output.splitlines()[-1])
        note = "; ".join(found["missing"])
        record.figure(f"first work under {name}", found["seconds"], "s", note=note)
        if name == "nothing":
            record.figure("files that it holds", ", ".join(found["held"])[:500] or "none")
    return failed


def _start(stage: str, device: str, folder: Path) -> "subprocess.Popen[str]":
    environ = worker_environment(dict(os.environ), platform.release())
    return subprocess.Popen(
        [sys.executable, "-m", _MODULE, stage, device, str(folder)],
        env={**environ, "TMPDIR": str(folder), "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# ---- the product's own worker --------------------------------------------------------------------


class _Listener:
    def __init__(self) -> None:
        self.final: asyncio.Future[TextDone | Failed] = asyncio.get_running_loop().create_future()

    def on_events(self, _worker: Worker, events: list[JobEvent]) -> None:
        for event in events:
            if isinstance(event, TextDone | Failed) and not self.final.done():
                self.final.set_result(event)

    def on_progress(self, _worker: Worker, _fraction: float) -> None: ...

    def on_lost(self, worker: Worker, cause: str) -> None:
        if not self.final.done():
            error = RuntimeError(f"the worker {cause}: {worker.output.tail}")
            self.final.set_exception(error)


async def _run(record: Recorder, folder: Path, mode: ConfineMode) -> str:
    """Load a model in a worker, have it answer; gives the answer."""
    listener = _Listener()
    confinement = Confinement(mode=mode, inputs=str(folder), caches=str(folder / "cache"))
    launcher = SpawnLauncher(folders=WorkFolders(folder / "work"), confinement=confinement)
    pool = WorkerPool(launcher, listener, heartbeat_timeout=30, load_timeout=_PATIENCE, spare=False)
    try:
        worker = await pool.start("text/0", _spec(record))
        assert worker.ready is not None
        note = ", ".join(worker.ready.confined.measures) or "no measures"
        record.figure(f"load, {mode}", worker.ready.load_seconds, "s", note=note)
        tokens = _TOKENS[record.shape]
        sampling = Sampling(max_tokens=tokens, ignore_eos=True)
        began = time.perf_counter()
        worker.send(TextJob(id="one", prompt="Once upon a time", sampling=sampling, stream=False))
        async with asyncio.timeout(_PATIENCE):
            final = await listener.final
        assert isinstance(final, TextDone), final
        rate = tokens / (time.perf_counter() - began)
        record.figure(f"tokens of one row, {mode}", rate, "tokens/s", note="the first request")
        return final.text
    finally:
        await pool.close()


def _spec(record: Recorder) -> Load:
    """Return the smallest model: confinement costs the host only. A rehearsal pretends one."""
    if record.tiny:
        return Load(model="text", engine="fake", path=str(record.folder), device=record.device)
    made = make_files(record.device, record.folder, {"text": "tiny"})["text"]
    return Load(
        model="text",
        engine="text",
        path=str(made.path),
        device=record.device,
        visible_devices="0" if record.device == "cuda" else "",
    )
