"""Turns a job's events into an answer that is kept, and an answer into the events of another job.

Kept are events, not bodies: one answer serves both surfaces, as a body or as a stream, and each
request has its own ids in it.
"""

from typing import TypeVar

import msgspec

from bitinglip.results.cache.entries import Answer
from bitinglip.scheduling.event_log import EventLog, Loading, Queued
from bitinglip.scheduling.job import Job
from bitinglip.work import traits_of_success
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
    return isinstance(final, protocol.Succeeds) and traits_of_success(final).is_whole(final)


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
        for event in output if streamed else (*output, *traits_of_success(final).pieces(final)):
            event_log.put(_of(event, job.id))
    event_log.put(final)
    return event_log


def _of(event: E, job_id: str) -> E:
    return msgspec.structs.replace(event, id=job_id)
