"""Plays workers on a node by script: entries for ``SpawnLauncher``."""

import os
import struct
from pathlib import Path

from workers.codes import DRIVER_STARTED
from workers.framing import read_commands, write_events
from workers.protocol import (
    ChatMessage,
    Heartbeat,
    ImageDone,
    ImageFile,
    ImageJob,
    Imported,
    LoadFailed,
    Picture,
    Ready,
    SpeechDone,
    SpeechJob,
    TextChoice,
    TextDelta,
    TextDone,
    TextJob,
)


def message(path: str) -> ChatMessage:
    return ChatMessage("user", "look", pictures=(Picture(path, 0),))


def is_too_late(jobs: int, events: int, _death: int) -> None:
    """Have started the driver before the cards were chosen."""
    read_commands(jobs)
    write_events(events, [Imported()])
    read_commands(jobs)
    write_events(events, [LoadFailed(code=DRIVER_STARTED, message="too late")])


def speaks(jobs: int, events: int, _death: int) -> None:
    """Speak ``file`` into a file, and any other text as a link to the path that it is; answer a
    message with what the file of its picture holds, and nothing to a prompt."""
    read_commands(jobs)
    write_events(events, [Imported()])
    read_commands(jobs)
    write_events(events, [Ready(slots=8), Heartbeat(steps=1, in_flight=0, memory_bytes=1)])
    while commands := read_commands(jobs):
        for job in commands:
            if isinstance(job, SpeechJob):
                _speak(events, job)
            elif isinstance(job, TextJob) and job.messages is not None:
                _read(events, job)


def paints(jobs: int, events: int, _death: int) -> None:
    """Make of each picture that a job names a file with the same bytes."""
    read_commands(jobs)
    write_events(events, [Imported()])
    read_commands(jobs)
    write_events(events, [Ready(slots=1), Heartbeat(steps=1, in_flight=0, memory_bytes=1)])
    while commands := read_commands(jobs):
        for job in commands:
            if isinstance(job, ImageJob):
                _paint(events, job)


def _paint(events: int, job: ImageJob) -> None:
    assert job.image is not None
    data = Path(job.image).read_bytes()
    Path(job.folder, f"{job.id}-0.png").write_bytes(data)
    image = ImageFile(
        width=job.width, height=job.height, seed=job.seeds[0], format="png", bytes=len(data)
    )
    write_events(events, [ImageDone(id=job.id, images=(image,), steps=1, scheduler="none")])


def _speak(events: int, job: SpeechJob) -> None:
    path = Path(job.folder, f"{job.id}-0.wav")
    if job.text == "file":
        path.write_bytes(b"sound!!")
    else:
        os.symlink(job.text, path)
    done = SpeechDone(id=job.id, format="wav", bytes=7, sample_rate=8, duration=1, sentences=1)
    write_events(events, [done])


def _read(events: int, job: TextJob) -> None:
    assert job.messages is not None
    text = Path(job.messages[0].pictures[0].source).read_text()
    choice = TextChoice(text=text, finish_reason="stop")
    done = TextDone(id=job.id, choices=(choice,), prompt_tokens=1, completion_tokens=1)
    write_events(events, [TextDelta(id=job.id, text=text, index=0), done])


def claims_too_much(jobs: int, events: int, _death: int) -> None:
    """Begin a frame that is longer than any may be, and live on."""
    read_commands(jobs)
    write_events(events, [Imported()])
    read_commands(jobs)
    os.write(events, struct.pack("!I", 1 << 25))
    read_commands(jobs)
