"""Counts the memory that events of jobs hold in the gateway. Pure.

Counts are bytes as Python keeps them: one character of a string takes up to four.
"""

from collections.abc import Callable, Iterable
from sys import getsizeof
from typing import Any, get_args, get_type_hints

import msgspec

from workers import protocol

_BYTES_OF_AN_EVENT = 300  #: its object and its short fields
_BYTES_OF_A_LOGPROB = 200
_BYTES_OF_AN_ALTERNATIVE = 170
_BYTES_OF_A_TOKEN = 36
_BYTES_OF_A_WORD = 200


def event_bytes(events: Iterable[object]) -> int:
    """Count what events hold; those of other kinds than output and finals are small."""
    size = 0
    for event in events:
        payload = _PAYLOADS.get(type(event))
        size += _BYTES_OF_AN_EVENT if payload is None else _BYTES_OF_AN_EVENT + payload(event)
    return size


def _text(text: protocol.TextDelta | protocol.TextChoice) -> int:
    size = getsizeof(text.text) + getsizeof(text.reasoning)
    for call in text.tool_calls:
        size += _BYTES_OF_AN_EVENT + getsizeof(call.arguments)
    return size + sum(map(_logprob, text.logprobs)) if text.logprobs else size


def _logprob(logprob: protocol.TokenLogprob) -> int:
    return _BYTES_OF_A_LOGPROB + _BYTES_OF_AN_ALTERNATIVE * len(logprob.top)


def _segment(segment: protocol.Segment) -> int:
    tokens, words = _BYTES_OF_A_TOKEN * len(segment.tokens), _BYTES_OF_A_WORD * len(segment.words)
    return getsizeof(segment.text) + tokens + words


def _transcription(done: protocol.TranscriptionDone) -> int:
    return getsizeof(done.text) + sum(map(_segment, done.segments))


def _of_bytes(event_type: type[msgspec.Struct]) -> Callable[[Any], int]:
    """Count the fields of bytes: what is large of events that have no function of their own."""
    types = get_type_hints(event_type)  # without the bounds of Annotated
    names = [name for name in event_type.__struct_fields__ if types[name] is bytes]
    return lambda event: sum(len(getattr(event, name)) for name in names)


#: by the event's type; asked at the end of each job, when a search through patterns took longer
_PAYLOADS: dict[type, Callable[[Any], int]] = {
    **{each: _of_bytes(each) for each in get_args(protocol.Success)},
    protocol.TextDelta: _text,
    protocol.TextDone: lambda done: sum(map(_text, done.choices)),
    protocol.AudioDelta: lambda delta: len(delta.samples),
    protocol.Progress: lambda progress: len(progress.preview),
    protocol.SegmentDelta: lambda delta: _segment(delta.segment),
    protocol.TranscriptionDone: _transcription,
    protocol.Failed: lambda failed: getsizeof(failed.message),
}
