"""Queues and balancers count in the cost of jobs; each kind has its own unit. Pure.

The units are tokens of text, megapixels times steps of images, and seconds of audio.
"""

import hashlib
from typing import assert_never

from bitinglip.scheduling.job import Job
from workers import protocol

_AFFINITY_CHARACTERS = 1024
_CHARACTERS_PER_TOKEN = 4
_CHARACTERS_PER_SECOND = 15  #: of speech at an ordinary pace
_BYTES_PER_SECOND = 16_000  #: of an audio file of middling quality
_PIXELS = 1_000_000  #: of a megapixel


def cost(job: Job) -> float:
    """Estimate what a job will take."""
    work = job.work
    match work:
        case protocol.TextJob():
            return _characters(work) / _CHARACTERS_PER_TOKEN + work.sampling.max_tokens
        case protocol.ImageJob():
            return megapixels(work) * work.steps
        case protocol.SpeechJob():
            return len(work.text) / _CHARACTERS_PER_SECOND
        case protocol.TranscriptionJob():
            return min(work.max_seconds, job.file_bytes / _BYTES_PER_SECOND)
        case _:
            assert_never(work)


def cost_done(job: Job, final: protocol.Success | protocol.Cancelled) -> float:
    """Return what a job took in the end; the estimate where its final event does not tell."""
    work = job.work
    match work:
        case protocol.TextJob():
            if isinstance(final, protocol.TextDone | protocol.Cancelled):
                return float(final.prompt_tokens + final.completion_tokens)
        case protocol.ImageJob():
            if isinstance(final, protocol.Cancelled):
                return megapixels(work) * min(final.steps, work.steps)
        case protocol.SpeechJob() | protocol.TranscriptionJob():
            if isinstance(final, protocol.SpeechDone | protocol.TranscriptionDone):
                return final.duration
        case _:
            assert_never(work)
    return cost(job)


def affinity(job: Job) -> bytes:
    """Return the same digest for jobs of a key that a worker's caches make cheaper together.

    These are texts that begin alike (the turns of a conversation), images of one prompt, and speech
    in one voice; audio files share nothing.
    """
    work = job.work
    match work:
        case protocol.TextJob():
            shared = _beginning(work)
        case protocol.ImageJob():
            shared = work.prompt[:_AFFINITY_CHARACTERS]
        case protocol.SpeechJob():
            shared = f"{work.voice}\0{work.language}"
        case protocol.TranscriptionJob():
            shared = work.path
        case _:
            assert_never(work)
    whole = f"{job.key_id}\0{shared}".encode("utf-8", "replace")
    return hashlib.blake2b(whole, digest_size=8).digest()


def megapixels(work: protocol.ImageJob) -> float:
    """Return the megapixels of all images of a job."""
    return len(work.seeds) * work.width * work.height / _PIXELS


def _characters(work: protocol.TextJob) -> int:
    if work.prompt is not None:
        return len(work.prompt)
    return sum(len(message.content) for message in work.messages or ())


def _beginning(work: protocol.TextJob) -> str:
    if work.prompt is not None:
        return work.prompt[:_AFFINITY_CHARACTERS]
    start = "\0".join(message.content for message in (work.messages or ())[:2])
    return start[:_AFFINITY_CHARACTERS]
