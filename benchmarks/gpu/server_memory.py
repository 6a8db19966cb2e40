"""Runs the steps of the part ``server`` with short memory: eviction, other programs, exhaustion."""

import time
from collections.abc import Callable
from contextlib import closing

from benchmarks.gpu.other_program import OtherProgram
from benchmarks.gpu.server_check import LOAD_PATIENCE, ServerCheck
from benchmarks.gpu.server_models import KINDS, LARGE, SIDE

_ON_CARDS = "only on a card"
_SPARED = 10**9  #: bytes of the card that another program leaves to a large picture
_MARGIN = 4 * 10**9  #: bytes that ``large`` lacks while another program holds its own
_LARGE_SIDE = 2048
_PICTURE_PATIENCE = 60.0
_POLL = 0.1
_PATIENCE = 20.0
_FOREIGN_ERROR = 300 * 10**6


def check_eviction(check: ServerCheck) -> None:
    """Ask for a model that does not fit beside the others: unused ones are evicted for it."""
    check.await_spare()
    before = check.loaded()
    began = time.perf_counter()
    check.first_token(LARGE)
    seconds = time.perf_counter() - began
    gone = sorted(before - check.loaded())
    note = f"{', '.join(gone) or 'no model'} left; {check.models.large_bytes / 1e9:.1f} GB reserved"
    check.record.figure("swap (evict and load): first token", seconds, "s", note=note)
    if not gone:
        raise AssertionError(f"no model left for the large one: {check.status()}")
    check.api.post(f"/api/v1/models/{LARGE}/unload")
    if "text" in gone and not check.record.tiny:
        check.await_spare()
        check.load("text", again=True)


def check_taken_memory(check: ServerCheck, others: list[OtherProgram]) -> None:
    """Take memory by another program: the server sees it, refuses what no longer fits, recovers."""
    record = check.record
    if not others:
        record.figure("another program's memory", _ON_CARDS)
        return
    check.look()
    device = check.device()
    before = device["foreign_bytes"]
    usable = device["memory_bytes"] - before
    with closing(others.pop()) as other:
        held = other.take(usable - check.models.large_bytes + _MARGIN)
        seconds = _until(lambda: check.device()["foreign_bytes"] > before + held - _FOREIGN_ERROR)
        foreign = check.device()["foreign_bytes"] - before
        note = f"it holds {held / 1e9:.1f} GB and a context; seen after {seconds:.1f} s"
        record.figure("another program's memory by the server", foreign / 1e9, "GB", note=note)
        path = f"/api/v1/models/{LARGE}/load"
        answer = check.api.ask("POST", path, {}, LOAD_PATIENCE)
        details = sorted(answer.body.get("error", {}).get("details", {}))
        note = f"{answer.status} {answer.code}; details: {', '.join(details)}"
        record.figure("a load that no longer fits: answer", answer.seconds, "s", note=note)
    seconds = _until(lambda: check.device()["foreign_bytes"] < before + _FOREIGN_ERROR)
    record.figure("its end until the server's books are as before", seconds, "s")
    if answer.code != "MODEL_DOES_NOT_FIT" or not details:
        raise AssertionError(f"the load answered {answer.status}: {answer.body}")


def check_out_of_memory(check: ServerCheck, others: list[OtherProgram]) -> None:
    """Ask for a picture too large for the memory that is left: it is made by other means, or
    refused."""
    record = check.record
    if not others:
        record.figure("out of memory", _ON_CARDS)
        return
    for name in (*KINDS, LARGE):
        if name != "image":  # the server would have them make room for the other program
            check.api.post(f"/api/v1/models/{name}/unload")
    pid = check.pid("image")
    with closing(others.pop()) as other:
        held = other.leave(_SPARED)
        answer = check.picture(_LARGE_SIDE, _PICTURE_PATIENCE)
        memory_fallbacks = ", ".join(answer.body.get("result", {}).get("measures", [])) or "none"
        outcome = answer.code or f"a picture; measures: {memory_fallbacks}"
        note = f"{_LARGE_SIDE} x {_LARGE_SIDE}, {_SPARED / 1e9:g} GB left by {held / 1e9:.1f} GB"
        record.figure("out of memory: outcome", outcome, note=note)
        record.figure("out of memory: seconds until then", answer.seconds, "s")
        after = check.picture(SIDE[record.shape] // 2, _PICTURE_PATIENCE)
    same = "the same process" if check.pid("image") == pid else "another process"
    record.figure("out of memory: the next, smaller picture", after.seconds, "s", note=same)
    if answer.code not in ("", "OUT_OF_MEMORY"):
        raise AssertionError(f"the large picture answered {answer.status}: {answer.body}")
    if after.status != 200 or check.pid("image") != pid:
        raise AssertionError(f"the worker did not serve on: {after.status}, {same}")


def _until(true: Callable[[], bool]) -> float:
    """Return seconds until a condition holds. Raises AssertionError if it does not come to that."""
    began = time.perf_counter()
    while not true():
        if time.perf_counter() - began > _PATIENCE:
            raise AssertionError(f"the server's books do not follow within {_PATIENCE:g} s")
        time.sleep(_POLL)
    return time.perf_counter() - began
