"""Turns a job's events into an answer that is kept, and an answer into the events of another job.

Kept are events, not bodies: one answer serves both surfaces, as a body or as a stream, and each
request has its own ids in it.
"""

from collections.abc import Iterator
from typing import TypeVar, assert_never

import msgspec

from bitinglip.results.cache.entries import Answer
from bitinglip.scheduling.event_log import EventLog, Loading, Queued
from bitinglip.scheduling.job import Job
from workers import protocol

E = TypeVar("E", bound=msgspec.Struct)
_encode = msgspec.msgpack.Encoder().encode
_output = msgspec.msgpack.Decoder(list[protocol.JobEvent])
_final = msgspec.msgpack.Decoder(protocol.Success)


def is_whole(final: protocol.Final) -> bool:
    """Return whether a job ended with an answer that a repeat would have, too.

    Pictures that a safety checker made black are none, nor is what was sampled after all because
    the transcription of a window failed at temperature 0.
    """
    match final:
        case protocol.ImageDone(images=images):
            return not any(each.filtered for each in images)
        case protocol.TranscriptionDone(segments=segments):
            return all(each.temperature == 0 for each in segments)
        case protocol.TextDone() | protocol.SpeechDone() | protocol.EmbeddingDone():
            return True
        case protocol.Failed() | protocol.Cancelled():
            return False
        case _:
            assert_never(final)


def pack(event_log: EventLog, files: tuple[bytes, ...]) -> Answer:
    """Encode the events of a job that succeeded."""
    assert isinstance(event_log.final, protocol.Succeeds)
    output = [
        _of(each, "")
        for each in event_log.events
        if not isinstance(each, Queued | Loading | protocol.Ends)
    ]
    return Answer(_encode(output), _encode(_of(event_log.final, "")), files)


def unpack(answer: Answer, job: Job, submitted: float) -> EventLog:
    """Return the ended event log of a job whose answer was kept; nothing is shown as new work."""
    event_log = EventLog(job)
    event_log.submitted = submitted
    final = _of(_final.decode(answer.final), job.id)
    if isinstance(final, protocol.TextDone):  # by which the usage tells that nothing was computed
        final = msgspec.structs.replace(final, cached_tokens=final.prompt_tokens)
    if job.stream:
        output = _output.decode(answer.output)
        streamed = any(not isinstance(each, protocol.Started) for each in output)
        for event in output if streamed else (*output, *_pieces(final)):
            event_log.put(_of(event, job.id))
    event_log.put(final)
    return event_log


def _pieces(final: protocol.Success) -> Iterator[protocol.JobEvent]:
    """Yield the output of a stream for an answer that came in one body."""
    match final:
        case protocol.TextDone(choices=choices):
            last = max(0, final.completion_tokens // len(choices) - 1)
            for number, choice in enumerate(choices):
                yield from _text_pieces(number, choice, last)
        case protocol.TranscriptionDone(segments=segments):
            for index, segment in enumerate(segments):
                yield protocol.SegmentDelta(id="", segment=segment, index=index)


def _text_pieces(
    number: int, choice: protocol.TextChoice, last: int
) -> Iterator[protocol.TextDelta]:
    calls = tuple(
        protocol.ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments)
        for index, call in enumerate(choice.tool_calls)
    )
    if choice.text or choice.logprobs or choice.reasoning or calls:
        yield protocol.TextDelta(
            id="",
            text=choice.text,
            index=last,
            logprobs=choice.logprobs,
            choice=number,
            reasoning=choice.reasoning,
            tool_calls=calls,
        )


def _of(event: E, job_id: str) -> E:
    return msgspec.structs.replace(event, id=job_id)
