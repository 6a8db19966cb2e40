"""Tell the scheduler how kinds of jobs differ: costs, inputs, events. Pure.

A new kind gets a branch in each of these functions; the type checker finds one that is forgotten.
Costs have a unit for each kind: tokens of text, megapixels times steps of images, seconds of audio.
Memory is counted in bytes as Python keeps them: one character of a string takes up to four.
"""

import hashlib
from sys import getsizeof
from typing import assert_never

import msgspec

from bitinglip.scheduling.job import Job
from workers import protocol

_AFFINITY_CHARACTERS = 1024
_CHARACTERS_PER_TOKEN = 4
_CHARACTERS_PER_SECOND = 15  #: of speech at an ordinary pace
_BYTES_PER_SECOND = 16_000  #: of an audio file of middling quality
_TOKEN_BYTES = 36  #: of a token id in a tuple
_PIXELS = 1_000_000  #: of a megapixel
_TREE_BYTES = 8  #: that a schema takes in memory for each byte of its JSON
_EVENT_BYTES = 64 << 20  #: of any job's events; beside it, some for each unit of its cost

_json = msgspec.json.Encoder()
_OF_ANY = (protocol.Started, protocol.Progress, protocol.Failed, protocol.Cancelled)
_OF_TEXT = frozenset[type]({*_OF_ANY, protocol.TextDelta, protocol.TextDone})
_OF_IMAGES = frozenset[type]({*_OF_ANY, protocol.ImageDone})
_OF_SPEECH = frozenset[type]({*_OF_ANY, protocol.AudioDelta, protocol.SpeechDone})
_OF_EMBEDDINGS = frozenset[type]({*_OF_ANY, protocol.EmbeddingDone})
_OF_TRANSCRIPTIONS = frozenset[type]({*_OF_ANY, protocol.SegmentDelta, protocol.TranscriptionDone})


def cost(job: Job) -> float:
    """Estimate what a job will take."""
    work = job.work
    match work:
        case protocol.TextJob():
            return _prompt_tokens(work) + work.sequences * work.sampling.max_tokens
        case protocol.ImageJob():
            return megapixels(work) * work.steps
        case protocol.SpeechJob():
            return len(work.text) / _CHARACTERS_PER_SECOND
        case protocol.TranscriptionJob():
            return min(work.max_seconds, job.file_bytes / _BYTES_PER_SECOND)
        case protocol.EmbeddingJob():
            query = len(work.query or "")
            return sum(query + len(text) for text in work.texts) / _CHARACTERS_PER_TOKEN
        case _:
            assert_never(work)


def cost_done(job: Job, final: protocol.Success | protocol.Cancelled) -> float:
    """Return what a job took in the end; the estimate where its final event does not tell."""
    work = job.work
    match work:
        case protocol.TextJob():
            if isinstance(final, (protocol.TextDone, protocol.Cancelled)):
                return float(final.prompt_tokens + final.completion_tokens)
        case protocol.ImageJob():
            if isinstance(final, protocol.Cancelled):
                return megapixels(work) * min(final.steps, work.steps)
        case protocol.SpeechJob() | protocol.TranscriptionJob():
            if isinstance(final, protocol.SpeechDone | protocol.TranscriptionDone):
                return final.duration
        case protocol.EmbeddingJob():
            if isinstance(final, protocol.EmbeddingDone):
                return float(final.prompt_tokens)
        case _:
            assert_never(work)
    return cost(job)


def affinity(job: Job) -> bytes:
    """Return the same digest for jobs of a key that a worker's caches make cheaper together.

    These are texts that begin alike (the turns of a conversation), images of one prompt, and speech
    in one voice; audio files and texts to embed share nothing.
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
        case protocol.EmbeddingJob():
            shared = job.id
        case _:
            assert_never(work)
    whole = f"{job.key_id}\0{shared}".encode("utf-8", "replace")
    return hashlib.blake2b(whole, digest_size=8).digest()


def input_bytes(job: Job) -> int:
    """Count what the client sent and the gateway keeps until the job has ended."""
    work = job.work
    texts: list[str | None]
    match work:
        case protocol.TextJob():
            return _text_bytes(work)
        case protocol.ImageJob():
            texts = [work.prompt, work.negative_prompt]
        case protocol.SpeechJob():
            texts = [work.text]
        case protocol.TranscriptionJob():
            texts = [work.prompt]
        case protocol.EmbeddingJob():
            texts = [*work.texts, work.query]
        case _:
            assert_never(work)
    return sum(getsizeof(text) for text in texts)


def _text_bytes(work: protocol.TextJob) -> int:
    size = 0
    for message in work.messages or ():
        size += sum(map(getsizeof, message.texts()))
    for prompt in prompts_of(work):
        size += getsizeof(prompt) if isinstance(prompt, str) else len(prompt) * _TOKEN_BYTES
    if work.grammar is not None:
        size += getsizeof(work.grammar.source)
    if work.tools:
        size += tools_bytes(work) * _TREE_BYTES
    if work.template_kwargs:
        size += len(_json.encode(work.template_kwargs)) * _TREE_BYTES
    return size


def without_input(job: Job) -> Job:
    """Return an ended job without its prompts, which nothing asks for any more.

    The text of a speech job stays: its usage tells the number of characters.
    """
    work = job.work
    match work:
        case protocol.TextJob():
            prompts = ("",) * len(work.prompts)  # their number tells that of the choices
            work = msgspec.structs.replace(
                work,
                prompt=None,
                prompts=prompts,
                messages=None,
                tools=(),
                template_kwargs={},
                grammar=None,
            )
        case protocol.ImageJob():
            work = msgspec.structs.replace(work, prompt="", negative_prompt=None)
        case protocol.TranscriptionJob():
            work = msgspec.structs.replace(work, prompt=None)
        case protocol.EmbeddingJob():
            work = msgspec.structs.replace(work, texts=(), query=work.query and "")
        case protocol.SpeechJob():
            return job
        case _:
            assert_never(work)
    return msgspec.structs.replace(job, work=work)


def upload_paths(work: protocol.Job) -> dict[str, str]:
    """Return the paths of the files that a client sent, by the message's fields."""
    match work:
        case protocol.ImageJob():
            found = {"image": work.image, "mask": work.mask}
            return {name: path for name, path in found.items() if path is not None}
        case protocol.TranscriptionJob():
            return {"path": work.path}
        case protocol.TextJob() | protocol.SpeechJob() | protocol.EmbeddingJob():
            return {}
        case _:
            assert_never(work)


def event_types(work: protocol.Job) -> frozenset[type]:
    """Return the types of the events that a sound worker sends for a job."""
    match work:
        case protocol.TextJob():
            return _OF_TEXT
        case protocol.ImageJob():
            return _OF_IMAGES
        case protocol.SpeechJob():
            return _OF_SPEECH
        case protocol.TranscriptionJob():
            return _OF_TRANSCRIPTIONS
        case protocol.EmbeddingJob():
            return _OF_EMBEDDINGS
        case _:
            assert_never(work)


def most_event_bytes(work: protocol.Job, cost: float) -> float:
    """Return how many bytes all events of a job of this cost may hold, at the most."""
    match work:
        case protocol.TextJob():
            return _EVENT_BYTES + cost * (1 << 10)
        case protocol.ImageJob() | protocol.SpeechJob():
            return _EVENT_BYTES + cost * (1 << 20)
        case protocol.TranscriptionJob():
            return _EVENT_BYTES + cost * (1 << 16)
        case protocol.EmbeddingJob():
            return _EVENT_BYTES
        case _:
            assert_never(work)


def megapixels(work: protocol.ImageJob) -> float:
    """Return the megapixels of all images of a job."""
    return len(work.seeds) * work.width * work.height / _PIXELS


def prompts_of(work: protocol.TextJob) -> tuple[protocol.Prompt, ...]:
    """Return the prompts of a job; none of one that has messages."""
    return work.prompts if work.prompt is None else (work.prompt,)


def _prompt_tokens(work: protocol.TextJob) -> float:
    ids, characters = 0, tools_bytes(work) if work.tools else 0
    for prompt in prompts_of(work):
        if isinstance(prompt, str):
            characters += len(prompt)
        else:
            ids += len(prompt)
    for message in work.messages or ():
        characters += sum(map(len, message.texts()))
    return ids + characters / _CHARACTERS_PER_TOKEN


def tools_bytes(work: protocol.TextJob) -> int:
    """Return how long a job's tools are as JSON, as which templates write them into prompts."""
    return len(_json.encode(work.tools))


def _beginning(work: protocol.TextJob) -> str:
    for prompt in prompts_of(work)[:1]:
        return str(prompt[:_AFFINITY_CHARACTERS])
    start = "\0".join(message.content for message in (work.messages or ())[:2])
    return start[:_AFFINITY_CHARACTERS]
