"""Counts the memory that the events of jobs hold in the gateway. Pure.

Counts are bytes as Python keeps them: one character of a string takes up to four.
"""

from collections.abc import Iterable
from sys import getsizeof

import msgspec

from workers import protocol

_BYTES_OF_AN_EVENT = 300  #: its object and its short fields
_BYTES_OF_A_LOGPROB = 200
_BYTES_OF_AN_ALTERNATIVE = 170
_BYTES_OF_A_TOKEN = 36
_BYTES_OF_A_WORD = 200


def event_bytes(events: Iterable[object]) -> int:
    """Count what events hold; those of other kinds than output and finals are small."""
    return sum(_BYTES_OF_AN_EVENT + _payload(event) for event in events)


def _payload(event: object) -> int:
    match event:
        case protocol.TextDelta():
            return _text(event)
        case protocol.TextDone():
            return sum(map(_text, event.choices))
        case protocol.SegmentDelta():
            return _segment(event.segment)
        case protocol.TranscriptionDone():
            return getsizeof(event.text) + sum(map(_segment, event.segments))
        case protocol.Failed():
            return getsizeof(event.message)
        case msgspec.Struct():  # of the others, what is large are sounds, previews and vectors
            return sum(len(each) for each in msgspec.structs.astuple(event) if type(each) is bytes)
        case _:
            return 0


def _text(text: protocol.TextDelta | protocol.TextChoice) -> int:
    calls = sum(_BYTES_OF_AN_EVENT + getsizeof(call.arguments) for call in text.tool_calls)
    texts = getsizeof(text.text) + getsizeof(text.reasoning)
    return texts + calls + sum(map(_logprob, text.logprobs))


def _logprob(logprob: protocol.TokenLogprob) -> int:
    return _BYTES_OF_A_LOGPROB + _BYTES_OF_AN_ALTERNATIVE * len(logprob.top)


def _segment(segment: protocol.Segment) -> int:
    tokens, words = _BYTES_OF_A_TOKEN * len(segment.tokens), _BYTES_OF_A_WORD * len(segment.words)
    return getsizeof(segment.text) + tokens + words
