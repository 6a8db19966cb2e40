"""Runs ``bitinglip serve`` with a text, an image and a speech model on one card, by its HTTP API.

How long loads take, what the server's books say beside NVML, and what happens when memory is short,
another program takes it, or a worker dies. This process has no CUDA context of its own.
"""

import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.gpu.card_memory import CardMemory
from benchmarks.gpu.other_program import OtherProgram
from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.server_check import ServerCheck
from benchmarks.gpu.server_memory import (
    check_eviction,
    check_out_of_memory,
    check_taken_memory,
)
from benchmarks.gpu.server_models import KINDS, LARGE, prepare
from benchmarks.servers import BitingLip

_RESIDUE = 300 * 10**6  #: bytes that the card's use may stay above where it began
_STOP_PATIENCE = 40.0
_CRASH_TOKENS = 4000  #: of the stream that its worker does not live to end
_CRASH_AFTER = 5  #: events of it
_SOON = 5.0  #: seconds for the driver to free the memory of processes that have ended


def measure(record: Recorder) -> None:
    """Run every check on one server; raises an ExceptionGroup of those that failed, at the end."""
    memory = CardMemory(record.device)
    work = record.folder / "server"
    work.mkdir()
    try:
        models = prepare(record, memory, work)
        used = memory.used()
        with ExitStack() as stack:
            # Their imports take seconds: they are ready when they are needed.
            others = [stack.enter_context(OtherProgram()) for _ in range(2 * memory.on_card)]
            server = stack.enter_context(BitingLip(work, *models.settings))
            record.figure("start until /readyz", server.seconds_to_ready, "s", note="a new home")
            check = ServerCheck(record, server, memory, models, used)
            if record.tiny:
                check.load_at_once(KINDS)
            _run(
                server,
                [
                    partial(_check_model, check, "text"),
                    partial(_check_crash, check),
                    partial(_check_model, check, "image"),
                    partial(_check_model, check, "speech"),
                    partial(check_eviction, check),
                    partial(check_taken_memory, check, others),
                    partial(check_out_of_memory, check, others),
                    partial(_check_unload, check),
                    partial(_check_exit, check),
                ],
            )
    finally:
        _print_log(work / "bitinglip.log")
        shutil.rmtree(work, ignore_errors=True)


def _run(server: BitingLip, steps: list[Callable[[], None]]) -> None:
    """Run each step, also after one that failed, as long as the server runs."""
    errors: list[Exception] = []
    for step in steps:
        if errors and server.exit_code() is not None:
            break
        try:
            step()
        except Exception as error:  # noqa: BLE001  told at the end; the next steps do not need it
            traceback.print_exc()
            errors.append(error)
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(steps)} steps failed", errors)


def _print_log(path: Path) -> None:
    """Print the server's log, without the line that shows its key, into the part's own log."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        if "blk_" not in line:
            print(line)
    sys.stdout.flush()


def _check_model(check: ServerCheck, kind: str) -> None:
    """Load it, use it, and compare the books of its memory."""
    check.await_spare()
    check.load(kind)
    check.use(kind)
    check.compare_books(kind)


def _check_crash(check: ServerCheck) -> None:
    """Kill the text worker in a stream: the stream says so, and the next request is answered."""
    record = check.record
    pid = check.pid("text")
    killed, code = 0.0, ""
    for number, event in enumerate(check.chat("text", _CRASH_TOKENS)):
        if error := event.data.get("error"):
            code = str(error.get("code", "")).upper()
            seconds = event.at - killed
            record.figure("worker killed in a stream: error after", seconds, "s", note=code)
        elif number == _CRASH_AFTER:
            killed = time.perf_counter()
            check.kill(pid)
    if code != "WORKER_CRASHED":
        raise AssertionError(f"the stream of a killed worker ended with {code or 'no error'}")
    check.first_token("text")
    seconds = time.perf_counter() - killed
    record.figure("worker killed: until the model answers again", seconds, "s", expected="< 10")


def _check_unload(check: ServerCheck) -> None:
    """Unload everything: nothing of it stays, in the books and on the card."""
    record, memory = check.record, check.memory
    began = time.perf_counter()
    for name in (*KINDS, LARGE):
        check.api.post(f"/api/v1/models/{name}/unload")
    seconds = time.perf_counter() - began
    record.figure("unload of everything", seconds, "s")
    workers = [each for each in check.workers() if each["id"] != "spare"]
    status = check.status()
    if workers or status["in_flight"] or status["queued"] or status["reservations"]:
        raise AssertionError(f"something stays after unloading: {workers}, {status}")
    if not memory.on_card:
        record.figure("card's use after unloading", "only on a card")
        return
    fallen = memory.wait(lambda used: used < check.used + _RESIDUE, _SOON)
    stays = memory.used() - check.used
    note = f"reached {fallen:.2f} s after the last answer" if fallen is not None else ""
    record.figure(
        "card's use after unloading, above the start",
        stays / 1e9,
        "GB",
        expected="< 0.3",
        note=note,
    )
    if fallen is None:
        raise AssertionError(f"{stays} bytes of the card are in use after unloading")


def _check_exit(check: ServerCheck) -> None:
    began = time.perf_counter()
    code = check.server.terminate(_STOP_PATIENCE)
    note = f"exit code {code}"
    check.record.figure("SIGTERM until exit", time.perf_counter() - began, "s", note=note)
    if code != 0:
        raise AssertionError(f"the server's exit code is {code}")
