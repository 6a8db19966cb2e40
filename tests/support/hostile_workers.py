"""Plays workers that are broken or hostile, each by one function: entries for ``SpawnLauncher``."""

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable

import msgspec

from workers.framing import encode_frame, read_commands, write_events
from workers.protocol import Heartbeat, Imported, Ready, TextDelta, TextJob

Entry = Callable[[int, int, int], None]


def entry(worker: Entry) -> str:
    return f"{worker.__module__}:{worker.__name__}"


def _load(jobs: int, events: int) -> TextJob:
    """Do what a worker does until it has its first job."""
    read_commands(jobs)
    write_events(events, [Imported()])
    read_commands(jobs)
    write_events(events, [Ready(slots=8)])
    (job,) = read_commands(jobs)
    assert isinstance(job, TextJob)
    return job


def reads_slowly(jobs: int, events: int, _death: int) -> None:
    """Load a model from a slow disk, and be well."""
    read_commands(jobs)
    write_events(events, [Imported()])
    read_commands(jobs)
    with open("/dev/zero", "rb") as disk:
        for _ in range(15):
            disk.read(1 << 21)
            time.sleep(0.2)
    write_events(events, [Ready(slots=8)])
    _beat(events)
    read_commands(jobs)


def _beat(events: int) -> None:
    """Go on to look alive."""

    def beat() -> None:
        with contextlib.suppress(OSError):
            while True:
                write_events(events, [Heartbeat(steps=1, in_flight=0, memory_bytes=1)])
                time.sleep(0.1)

    threading.Thread(target=beat, daemon=True).start()


def closes_all_while_it_starts(_jobs: int, _events: int, _death: int) -> None:
    os.closerange(0, 200)
    time.sleep(60)


def closes_all_once_ready(jobs: int, events: int, _death: int) -> None:
    _load(jobs, events)
    os.closerange(0, 200)
    time.sleep(60)


def _leave_a_child(work: Callable[[], None]) -> None:
    """Fork a child that keeps all pipes open, and end its parent."""
    child = os.fork()
    if child:
        print(child, flush=True)  # noqa: T201  the test reads it
        os._exit(0)
    with contextlib.suppress(OSError):
        work()
    time.sleep(60)


def forks_and_exits_while_it_starts(_jobs: int, _events: int, _death: int) -> None:
    _leave_a_child(lambda: None)


def forks_and_exits_once_ready(jobs: int, events: int, _death: int) -> None:
    _load(jobs, events)
    _leave_a_child(lambda: None)


def leaves_a_child_that_floods(jobs: int, events: int, _death: int) -> None:
    _load(jobs, events)
    _leave_a_child(lambda: _flood(events))


def _flood(events: int) -> None:
    beats = [Heartbeat(steps=1, in_flight=0, memory_bytes=1)] * 1000
    frame = encode_frame(beats) * 20
    while True:
        os.write(events, frame)


def floods(jobs: int, events: int, _death: int) -> None:
    _load(jobs, events)
    _flood(events)


def floods_its_output(jobs: int, events: int, _death: int) -> None:
    _load(jobs, events)
    _beat(events)
    while True:
        os.write(1, b"\n" * 1000 + b"x\n" * 10_000 + b"y" * 100_000)


def ends_no_job(jobs: int, events: int, _death: int) -> None:
    """Look alive, take every command, and act on none."""
    _load(jobs, events)
    _beat(events)
    while read_commands(jobs):
        pass


def floods_a_job(jobs: int, events: int, _death: int) -> None:
    """Answer the first job for ever, with indices that the protocol allows."""
    job = _load(jobs, events)
    deltas = [TextDelta(id=job.id, text="x" * 1000, index=index) for index in range(500)]
    while True:
        write_events(events, deltas)


def sends_one_frame_that_does_not_end(jobs: int, events: int, _death: int) -> None:
    _load(jobs, events)
    os.write(events, struct.pack("!I", 1 << 24))
    while True:
        os.write(events, b"\x91" * 60_000)


def trickles(jobs: int, events: int, _death: int) -> None:
    """Write a byte now and then, and never a whole message."""
    _load(jobs, events)
    os.write(events, struct.pack("!I", 1000))
    while True:
        os.write(events, b"\x00")
        time.sleep(0.1)


def nests_deeply(jobs: int, events: int, _death: int) -> None:
    _load(jobs, events)
    nested = b"\x81\xa1k" + b"\x91" * 1500 + b"\xc0"
    failed = {"type": "failed", "id": "j", "code": "INTERNAL_ERROR", "message": ""}
    _write(events, {**failed, "details": msgspec.Raw(nested)})


def says_again_that_it_is_imported(jobs: int, events: int, _death: int) -> None:
    """Look like a worker that does not serve yet, so that its end matters to no request."""
    _load(jobs, events)
    _write(events, {"type": "imported"})


def says_again_that_it_is_ready(jobs: int, events: int, _death: int) -> None:
    _load(jobs, events)
    _write(events, {"type": "ready", "slots": 9})


def holds_more_than_can_be_counted(jobs: int, events: int, _death: int) -> None:
    _load(jobs, events)
    _write(events, {"type": "heartbeat", "steps": 1, "in_flight": 0, "memory_bytes": 2**63})


def _write(events: int, event: dict[str, object]) -> None:
    """Write one event whatever the protocol says to it, then look alive."""
    payload = msgspec.msgpack.encode([event])
    _beat(events)
    while True:
        os.write(events, struct.pack("!I", len(payload)) + payload)
        time.sleep(0.1)


def reads_no_jobs(jobs: int, events: int, _death: int) -> None:
    """Close the pipe of jobs and look alive."""
    _load(jobs, events)
    os.close(jobs)
    _beat(events)
    time.sleep(60)


def answers_as_another_kind(jobs: int, events: int, _death: int) -> None:
    """Answer a text job with a sound."""
    job = _load(jobs, events)
    spoken = {"type": "speech_done", "id": job.id, "format": "wav", "bytes": 1}
    _write(events, {**spoken, "sample_rate": 24000, "duration": 1.0, "sentences": 1})
