"""Answers of each kind come back as the events that they were made from, under another id."""

from typing import Any, get_args

import msgspec
import pytest

from bitinglip.results.cache.replay import is_whole, pack, unpack
from bitinglip.scheduling.event_log import EventLog, Loading, Queued
from bitinglip.scheduling.job import Job
from workers import protocol

SEGMENTS = tuple(
    protocol.Segment(
        start=number,
        end=number + 1,
        text=text,
        tokens=(1, 2),
        words=(protocol.Word(0, 1, text),),
        avg_logprob=-0.5,
        no_speech_prob=0.1,
        temperature=0,
        compression_ratio=1,
    )
    for number, text in enumerate(("hé", "llo"))
)
LOGPROB = protocol.TokenLogprob(token="x", id=1, logprob=-1.0, top=(("x", 1, -1.0),))
TEXT = protocol.TextJob(id="", prompt="hi", sampling=protocol.Sampling(max_tokens=5))
IMAGE = protocol.ImageJob(
    id="", prompt="p", width=8, height=8, steps=2, seeds=(1,), folder="/f", preview_every=1
)
SPEECH = protocol.SpeechJob(id="", text="hi", seed=1, folder="/f")
VECTORS = protocol.EmbeddingJob(id="", texts=("hi", "ho"))
HEARD = protocol.TranscriptionJob(id="", path="/f", max_seconds=9)
OUTPUTS: dict[type, tuple[protocol.Job, list[Any]]] = {
    protocol.TextJob: (
        TEXT,
        [
            protocol.TextDelta(id="", text="hé", index=0, logprobs=(LOGPROB,)),
            protocol.TextDelta(id="", text="llo", index=2, logprobs=(LOGPROB,)),
            protocol.TextDone(
                id="",
                choices=(
                    protocol.TextChoice(
                        text="héllo", finish_reason="length", logprobs=(LOGPROB, LOGPROB)
                    ),
                ),
                prompt_tokens=7,
                completion_tokens=3,
            ),
        ],
    ),
    protocol.ImageJob: (
        IMAGE,
        [
            protocol.Progress(id="", step=1, steps=2, preview=b"\xff\x00"),
            protocol.ImageDone(
                id="",
                images=(protocol.ImageFile(width=8, height=8, seed=1, format="png", bytes=3),),
                steps=2,
                scheduler="ddim",
                guidance_scale=7.5,
            ),
        ],
    ),
    protocol.SpeechJob: (
        SPEECH,
        [
            protocol.AudioDelta(id="", index=0, samples=b"\x01\x02", sample_rate=8000),
            protocol.SpeechDone(
                id="", format="wav", bytes=3, sample_rate=8000, duration=0.5, sentences=1
            ),
        ],
    ),
    protocol.EmbeddingJob: (
        VECTORS,
        [
            protocol.Progress(id="", step=1, steps=1),
            protocol.EmbeddingDone(id="", vectors=bytes(16), dimensions=2, prompt_tokens=2),
        ],
    ),
    protocol.TranscriptionJob: (
        HEARD,
        [
            *(
                protocol.SegmentDelta(id="", segment=segment, index=index)
                for index, segment in enumerate(SEGMENTS)
            ),
            protocol.TranscriptionDone(
                id="", text="héllo", language="en", duration=2, segments=SEGMENTS
            ),
        ],
    ),
}


def log_of(work: protocol.Job, name: str, *, stream: bool = True) -> EventLog:
    made = msgspec.structs.replace(work, id=name, stream=stream)
    return EventLog(Job(work=made, model="m", key_id="k"))


def named(event: Any, name: str) -> Any:
    return msgspec.structs.replace(event, id=name)


def test_cache_takes_answers_of_every_kind() -> None:
    assert set(OUTPUTS) == set(get_args(protocol.Job))
    assert all(is_whole(output[-1]) for _, output in OUTPUTS.values())


@pytest.mark.parametrize("kind", OUTPUTS, ids=lambda kind: kind.__name__)
def test_cache_replays_a_stream_as_it_was(kind: type) -> None:
    work, output = OUTPUTS[kind]
    first = log_of(work, "first")
    for event in (Queued(1), Loading(0.5), protocol.Started(id="first", prompt_tokens=7)):
        first.put(event)
    for event in output:
        first.put(named(event, "first"))
    answer = pack(first, (b"abc",))
    assert answer.size > len(answer.output) + len(answer.final) + 3
    again = unpack(answer, log_of(work, "again").job, submitted=1.0)
    expected = [protocol.Started(id="again", prompt_tokens=7), *(named(e, "again") for e in output)]
    if kind is protocol.TextJob:  # all that it used was known
        expected[-1] = msgspec.structs.replace(expected[-1], cached_tokens=7)
    assert list(again.events) == expected
    assert (again.status, again.submitted, again.worker_id) == ("completed", 1.0, None)
    body = unpack(answer, log_of(work, "body", stream=False).job, submitted=1.0)
    assert list(body.events) == [named(expected[-1], "body")]


@pytest.mark.parametrize("kind", [protocol.TextJob, protocol.TranscriptionJob])
def test_cache_makes_a_stream_of_a_body(kind: type) -> None:
    work, output = OUTPUTS[kind]
    first = log_of(work, "first", stream=False)
    first.put(protocol.Started(id="first", prompt_tokens=7))
    first.put(named(output[-1], "first"))
    events = unpack(pack(first, ()), log_of(work, "again").job, submitted=1.0).events
    if kind is protocol.TranscriptionJob:
        assert list(events[1:-1]) == [named(event, "again") for event in output[:-1]]
        return
    (delta,) = events[1:-1]
    whole = protocol.TextDelta(id="again", text="héllo", index=2, logprobs=(LOGPROB, LOGPROB))
    assert delta == whole


def test_cache_makes_a_stream_of_all_choices_of_a_body() -> None:
    call = protocol.ToolCall(id="c", name="f", arguments="{}")
    choices = (
        protocol.TextChoice(text="a", finish_reason="stop", logprobs=(LOGPROB,)),
        protocol.TextChoice(text="", finish_reason="stop"),
        protocol.TextChoice(
            text="", finish_reason="tool_calls", reasoning="hm", tool_calls=(call,)
        ),
    )
    work = msgspec.structs.replace(TEXT, n=3)
    first = log_of(work, "first", stream=False)
    first.put(protocol.TextDone(id="first", choices=choices, prompt_tokens=7, completion_tokens=9))
    *events, final = unpack(pack(first, ()), log_of(work, "again").job, submitted=1.0).events
    assert isinstance(final, protocol.TextDone)
    assert final.choices == choices
    told = [each for each in events if isinstance(each, protocol.TextDelta)]
    assert [each.choice for each in told] == [0, 2]
    assert (told[0].text, told[0].logprobs) == ("a", (LOGPROB,))
    assert (told[1].reasoning, told[1].tool_calls[0].arguments) == ("hm", "{}")
