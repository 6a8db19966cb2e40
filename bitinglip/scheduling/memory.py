"""The memory that jobs hold in the gateway: what clients sent, and the events of ended jobs. Pure.

Counts are bytes as Python keeps them: one character of a string takes up to four.
"""

from collections.abc import Iterable
from dataclasses import replace
from sys import getsizeof
from typing import assert_never

import msgspec

from bitinglip.scheduling.job import Job
from workers import protocol

_BYTES_OF_AN_EVENT = 300  #: its object and its short fields
_BYTES_OF_A_LOGPROB = 200
_BYTES_OF_AN_ALTERNATIVE = 170
_BYTES_OF_A_TOKEN = 36
_BYTES_OF_A_WORD = 200


def input_bytes(job: Job) -> int:
    """Count what the client sent and the gateway keeps until the job has ended."""
    work = job.work
    match work:
        case protocol.TextJob():
            texts = [message.content for message in work.messages or ()] + [work.prompt]
        case protocol.ImageJob():
            texts = [work.prompt, work.negative_prompt]
        case protocol.SpeechJob():
            texts = [work.text]
        case protocol.TranscriptionJob():
            texts = [work.prompt]
        case _:
            assert_never(work)
    return sum(getsizeof(text) for text in texts)


def without_input(job: Job) -> Job:
    """Return an ended job without its prompts, which nothing asks for any more.

    The text of a speech job stays: its usage tells the number of characters.
    """
    work = job.work
    match work:
        case protocol.TextJob():
            return replace(job, work=msgspec.structs.replace(work, prompt=None, messages=None))
        case protocol.ImageJob():
            return replace(job, work=msgspec.structs.replace(work, prompt="", negative_prompt=None))
        case protocol.TranscriptionJob():
            return replace(job, work=msgspec.structs.replace(work, prompt=None))
        case protocol.SpeechJob():
            return job
        case _:
            assert_never(work)


def event_bytes(events: Iterable[object]) -> int:
    """Count what events hold; those of other kinds than output and finals are small."""
    return sum(_BYTES_OF_AN_EVENT + _payload(event) for event in events)


def _payload(event: object) -> int:
    match event:
        case protocol.TextDelta() | protocol.TextDone():
            return getsizeof(event.text) + sum(map(_logprob, event.logprobs))
        case protocol.AudioDelta():
            return len(event.samples)
        case protocol.Progress():
            return len(event.preview)
        case protocol.SegmentDelta():
            return _segment(event.segment)
        case protocol.TranscriptionDone():
            return getsizeof(event.text) + sum(map(_segment, event.segments))
        case protocol.Failed():
            return getsizeof(event.message)
        case _:
            return 0


def _logprob(logprob: protocol.TokenLogprob) -> int:
    return _BYTES_OF_A_LOGPROB + _BYTES_OF_AN_ALTERNATIVE * len(logprob.top)


def _segment(segment: protocol.Segment) -> int:
    tokens, words = _BYTES_OF_A_TOKEN * len(segment.tokens), _BYTES_OF_A_WORD * len(segment.words)
    return getsizeof(segment.text) + tokens + words
