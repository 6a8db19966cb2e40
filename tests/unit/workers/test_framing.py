"""Frames of events: how they are packed, and what of a worker's nonsense is refused."""

import os
import struct
import threading
from typing import Any, get_args

import msgspec
import pytest

from workers import framing, protocol
from workers.framing import (
    MAX_FRAME_BYTES,
    BadFrame,
    FrameReader,
    command_frame,
    encode_commands,
    encode_frame,
    read_commands,
    write_events,
)
from workers.protocol import Cancel, Event, Failed, Started, Stop, TextChoice, TextDelta, TextDone

_CHOICE: dict[str, Any] = {"text": "", "finish_reason": "stop"}
_DONE: dict[str, Any] = {"type": "text_done", "id": "j", "choices": [_CHOICE]}
_DONE |= {"prompt_tokens": 1, "completion_tokens": 1}
_PICTURE: dict[str, Any] = {"width": 64, "height": 64, "seed": 1, "format": "png", "bytes": 1}
_DRAWN: dict[str, Any] = {
    "type": "image_done",
    "id": "j",
    "images": [_PICTURE],
    "steps": 1,
    "scheduler": "ddim",
}
_SPOKEN: dict[str, Any] = {
    "type": "speech_done",
    "id": "j",
    "format": "wav",
    "bytes": 1,
    "sample_rate": 24000,
}
_SPOKEN |= {"duration": 1.0, "sentences": 1}
_READY: dict[str, Any] = {"type": "ready", "slots": 1}
_BEAT: dict[str, Any] = {"type": "heartbeat", "steps": 1, "in_flight": 0, "memory_bytes": 1}
_FAILED: dict[str, Any] = {"type": "failed", "id": "j", "code": "INTERNAL_ERROR", "message": "no"}
_SOUND: dict[str, Any] = {
    "type": "audio_delta",
    "id": "j",
    "index": 0,
    "samples": b"",
    "sample_rate": 24000,
}
_TOKEN: dict[str, Any] = {"token": "a", "id": 1, "logprob": -1.0}


def delta(size: int, job: str = "j") -> TextDelta:
    return TextDelta(id=job, text="x" * size, index=0)


def written(events: list[Event]) -> tuple[list[int], list[Event], list[str]]:
    """Write events to a pipe. -> sizes of frames, the events as they are read, failed jobs"""
    read, write = os.pipe()
    failed: list[str] = []

    def send() -> None:
        failed.extend(write_events(write, events))
        os.close(write)

    sender = threading.Thread(target=send)
    sender.start()
    with open(read, "rb") as pipe:
        data = pipe.read()
    sender.join()
    sizes = []
    place = 0
    while place < len(data):
        (length,) = struct.unpack_from("!I", data, place)
        sizes.append(length)
        place += 4 + length
    return sizes, FrameReader().feed(data), failed


def test_frame_holds_the_events_of_a_step() -> None:
    events: list[Event] = [Started(id="j"), delta(5)]
    sizes, read, failed = written(events)
    assert (len(sizes), read, failed) == (1, events, [])


def test_frames_share_what_is_too_much_for_one() -> None:
    events: list[Event] = [delta(400_000) for _ in range(60)]
    sizes, read, failed = written(events)
    assert read == events
    assert failed == []
    assert sum(sizes) > MAX_FRAME_BYTES
    assert max(sizes) < 2 << 20


def test_frame_holds_one_large_event() -> None:
    sizes, read, failed = written([delta(9_000_000), delta(5)])
    assert [len(each.text) for each in read if isinstance(each, TextDelta)] == [9_000_000, 5]
    assert len(sizes) == 2
    assert failed == []


def test_frame_that_no_event_fits_fails_that_job_only() -> None:
    end = TextDone(
        id="large",
        choices=(TextChoice(text="", finish_reason="stop"),),
        prompt_tokens=1,
        completion_tokens=1,
    )
    events: list[Event] = [delta(5), delta(MAX_FRAME_BYTES, "large"), delta(5, "large"), end]
    _, read, failed = written([*events, delta(6)])
    assert failed == ["large"]
    assert [type(each) for each in read] == [TextDelta, Failed, TextDelta]
    failure = read[1]
    assert isinstance(failure, Failed)
    assert (failure.id, failure.code) == ("large", "INVALID_REQUEST")


def test_commands_come_as_they_were_sent() -> None:
    read, write = os.pipe()
    try:
        for commands in ([Cancel("a"), Cancel("b")], [Stop()]):
            os.write(write, command_frame(encode_commands(commands)))
            assert read_commands(read) == commands
        os.write(write, command_frame(encode_commands([Stop()]))[:-1])
    finally:
        os.close(write)
    assert read_commands(read) == []  # cut off is as good as closed
    os.close(read)


@pytest.mark.parametrize(
    "event",
    [
        {**_DONE, "prompt_tokens": -5},
        {**_DONE, "completion_tokens": 2**62},
        {**_DONE, "choices": [{**_CHOICE, "finish_reason": "because"}]},
        {**_DONE, "id": "x" * 1000},
        {**_DONE, "choices": [{**_CHOICE, "logprobs": [{**_TOKEN, "logprob": float("nan")}]}]},
        {
            **_DONE,
            "choices": [{**_CHOICE, "logprobs": [{**_TOKEN, "top": [["a", 1, float("-inf")]]}]}],
        },
        {**_DRAWN, "images": [{**_PICTURE, "format": "exe"}]},
        {**_DRAWN, "images": [{**_PICTURE, "bytes": 2**63}]},
        {**_DRAWN, "guidance_scale": float("inf")},
        {**_SPOKEN, "format": "../../key"},
        {**_SPOKEN, "duration": -1.0},
        {**_SPOKEN, "duration": float("inf")},
        {**_SPOKEN, "sample_rate": 0},
        {**_SOUND, "samples": b"x" * (2 << 20)},
        {**_READY, "slots": 0},
        {**_READY, "slots": 2**40},
        {**_READY, "step_timeout": 1e18},
        {**_READY, "device": "tpu"},
        {**_READY, "memory_bytes": -1},
        {**_BEAT, "memory_bytes": 2**63},
        {**_BEAT, "steps": -1},
        {"type": "load_progress", "fraction": float("nan")},
        {**_FAILED, "message": "x" * 100_000},
        {**_FAILED, "code": "NO_SUCH_CODE"},
        {**_FAILED, "details": {"a": b"bytes"}},
        {**_FAILED, "details": {"a": {1: 2}}},
        {**_FAILED, "details": {"a": float("nan")}},
        {**_FAILED, "details": {"a": [[[["deep"]]]]}},
        {"type": "what"},
    ],
)
def test_frame_with_a_value_out_of_bounds_is_refused(event: dict[str, Any]) -> None:
    payload = msgspec.msgpack.encode([event])
    with pytest.raises(BadFrame, match="does not decode") as refused:
        FrameReader().feed(struct.pack("!I", len(payload)) + payload)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "event", [_DONE, _DRAWN, _SPOKEN, _READY, _BEAT, _FAILED, _SOUND], ids=lambda each: each["type"]
)
def test_frame_with_lawful_values_is_read(event: dict[str, Any]) -> None:
    payload = msgspec.msgpack.encode([event])
    assert len(FrameReader().feed(struct.pack("!I", len(payload)) + payload)) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x91" * 5000,
        b"\x91\x81\xa1k" + b"\x91" * 1500 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91\x82\xa4type\xa7started\xa2id\xa1\xff",  # not UTF-8
        b"\x91\x84\xa4type\xa6failed\xa2id\xa1j\xa4code\xaeINTERNAL_ERROR\xa7details"
        + b"\x81\xa1k" * 1500
        + b"\xc0",
    ],
)
def test_frame_that_is_invalid_is_refused_and_leaves_nothing_held(payload: bytes) -> None:
    reader = FrameReader()
    with pytest.raises(BadFrame):
        reader.feed(struct.pack("!I", len(payload)) + payload + b"\x00" * 100)
    assert len(reader._splitter._buffer) == 0


def test_frame_whose_length_is_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadFrame, match="over the limit"):
        FrameReader().feed(struct.pack("!I", MAX_FRAME_BYTES + 1))


def test_frame_error_quotes_no_control_characters() -> None:
    choice = {**_CHOICE, "finish_reason": "\x1b[2J\n" + "z" * 1000}
    payload = msgspec.msgpack.encode([{**_DONE, "choices": [choice]}])
    with pytest.raises(BadFrame) as refused:
        FrameReader().feed(struct.pack("!I", len(payload)) + payload)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


def test_frames_are_read_whatever_the_pieces() -> None:
    events: list[Event] = [Started(id="j"), delta(100), delta(3)]
    data = encode_frame(events[:1]) + encode_frame(events[1:])
    for size in (1, 3, 7, len(data)):
        reader = FrameReader()
        read = [
            event
            for place in range(0, len(data), size)
            for event in reader.feed(data[place : place + size])
        ]
        assert read == events
    assert framing.encode_frame([])


@pytest.mark.parametrize(
    ("mark", "union"),
    [
        (protocol.OfJob, protocol.JobEvent),
        (protocol.Ends, protocol.Final),
        (protocol.Succeeds, protocol.Success),
    ],
)
def test_marks_of_events_are_on_the_types_of_their_union_and_on_no_others(
    mark: type, union: Any
) -> None:
    marked = {each for each in get_args(protocol.Event) if issubclass(each, mark)}
    assert marked == set(get_args(union))
