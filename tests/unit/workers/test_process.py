"""Errors of a worker's process, by the table of faults."""

import os

import msgspec
import pytest

from tests.support.cuda_errors import OUT_OF_MEMORY_ERRORS
from workers import process
from workers.engines.fake import FakeEngine
from workers.engines.registry import make_engine
from workers.framing import command_frame
from workers.protocol import Failed, Sampling, TextJob


@pytest.mark.parametrize("error", OUT_OF_MEMORY_ERRORS.values(), ids=list(OUT_OF_MEMORY_ERRORS))
def test_load_that_runs_out_of_memory_says_so_wherever_it_happens(error: Exception) -> None:
    failed = process._load_failed(error)
    assert failed.code == "OUT_OF_MEMORY"
    assert failed.fault in ("memory", "library memory")


def test_load_that_a_driver_ends_says_what_to_do() -> None:
    error = RuntimeError("The NVIDIA driver on your system is too old (found version 12020).")
    failed = process._load_failed(error)
    assert (failed.code, failed.fault) == ("MODEL_LOAD_FAILED", "driver too old")
    assert "install a newer driver" in failed.message
    assert "CUDA 12.2 at most" in failed.message


def test_request_that_runs_out_of_ram_before_it_runs_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prepare(_engine: FakeEngine, _job: TextJob) -> None:
        raise MemoryError

    monkeypatch.setattr(FakeEngine, "prepare", prepare)
    loop = process.Loop(make_engine("fake"), 0, 0, 1.0)
    failed = loop._item(TextJob(id="a", prompt="b", sampling=Sampling(max_tokens=1)))
    assert isinstance(failed, Failed)
    assert failed.code == "OUT_OF_MEMORY"


def test_loop_ends_with_a_command_that_cannot_be_read() -> None:
    """A worker whose intake has ended would look alive and take nothing any more."""
    commands, gateway = os.pipe()
    listener, events = os.pipe()
    try:
        os.write(gateway, command_frame(b"no command"))
        loop = process.Loop(make_engine("fake"), commands, events, 60.0)
        with pytest.raises(msgspec.DecodeError):
            loop.run()
    finally:
        for end in (commands, gateway, listener, events):
            os.close(end)
