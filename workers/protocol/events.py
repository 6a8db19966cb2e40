"""Messages from a worker: its own state, and the events of jobs, each ended by one final."""

from typing import Any

import msgspec

from workers.codes import Code, LoadCode


class Imported(msgspec.Struct, tag="imported", frozen=True):
    """The process is up with its libraries imported; it has no model yet."""


class LoadProgress(msgspec.Struct, tag="load_progress", frozen=True):
    fraction: float


class Confined(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker has confined itself, by the names of measures; what is missing says why."""

    measures: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Ready(msgspec.Struct, tag="ready", frozen=True, kw_only=True):
    """The model answers from now on. What the engine found out about it."""

    slots: int  #: how many jobs it runs at once; more wait in the gateway
    max_context: int | None = None
    memory_bytes: int = 0  #: of its device's memory; on a CPU the process's own
    load_seconds: float = 0.0
    dtype: str | None = None
    device: str = "cpu"
    has_chat_template: bool = False
    step_timeout: float = (
        0.0  #: seconds that one step may take, where that is longer than silence may
    )
    confined: Confined = Confined()


class LoadFailed(msgspec.Struct, tag="load_failed", frozen=True, kw_only=True):
    """The model could not be loaded; the process ends."""

    code: LoadCode
    message: str


class Heartbeat(msgspec.Struct, tag="heartbeat", frozen=True, kw_only=True):
    """Written by the worker's own loop, so silence means that the loop is stuck."""

    steps: int
    in_flight: int
    memory_bytes: int


class Started(msgspec.Struct, tag="started", frozen=True, kw_only=True):
    id: str
    prompt_tokens: int = 0


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    id: int
    logprob: float
    top: tuple[tuple[str, int, float], ...] = ()  #: (token, id, logprob), best first


class TextDelta(msgspec.Struct, tag="text_delta", frozen=True, kw_only=True, omit_defaults=True):
    """Text that may be shown: never half a character, never part of a stop sequence."""

    id: str
    text: str
    index: int  #: of the last sampled token this text comes from, from 0
    logprobs: tuple[TokenLogprob, ...] = ()


class TextDone(msgspec.Struct, tag="text_done", frozen=True, kw_only=True, omit_defaults=True):
    """The final event of a job that succeeded."""

    id: str
    text: str  #: all of it, also when it was streamed
    finish_reason: str  #: "stop" or "length"
    prompt_tokens: int
    completion_tokens: int  #: every sampled token, the end token too
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class Progress(msgspec.Struct, tag="progress", frozen=True, kw_only=True, omit_defaults=True):
    """A job's progress: ``step`` of its ``steps`` are done."""

    id: str
    step: int
    steps: int
    preview: bytes = b""  #: a small JPEG of the first image as it is now


class ImageFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image that was made; its file is called as ``picture_name`` says."""

    width: int
    height: int
    seed: int
    format: str
    bytes: int
    filtered: bool = False  #: the model's own safety checker made it black


class ImageDone(msgspec.Struct, tag="image_done", frozen=True, kw_only=True, omit_defaults=True):
    """The final event of an image job that succeeded; one image for each seed, in order."""

    id: str
    images: tuple[ImageFile, ...]
    steps: int  #: as the scheduler counted them
    scheduler: str
    guidance_scale: float | None = None
    memory_fallbacks: tuple[str, ...] = ()  #: what was done to save memory, where it was short


class AudioDelta(msgspec.Struct, tag="audio_delta", frozen=True, kw_only=True):
    """The next piece of a job's sound: 16-bit little-endian samples of one channel."""

    id: str
    index: int
    samples: bytes
    sample_rate: int


class SpeechDone(msgspec.Struct, tag="speech_done", frozen=True, kw_only=True, omit_defaults=True):
    """The final event of a speech job that succeeded; its file is called as ``sound_name`` says."""

    id: str
    format: str
    bytes: int
    sample_rate: int
    duration: float  #: seconds
    sentences: int
    voice: str | None = None


class Word(msgspec.Struct, frozen=True):
    """Times in seconds from the start of the file, here and in segments."""

    start: float
    end: float
    text: str


class Segment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of what was said; the last four fields are of the window that it was heard in."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    words: tuple[Word, ...] = ()
    avg_logprob: float
    no_speech_prob: float
    temperature: float
    compression_ratio: float


class SegmentDelta(msgspec.Struct, tag="segment_delta", frozen=True, kw_only=True):
    """The next segment of a transcription; the segments before it will not change."""

    id: str
    segment: Segment
    index: int


class TranscriptionDone(msgspec.Struct, tag="transcription_done", frozen=True, kw_only=True):
    """The final event of a transcription that succeeded."""

    id: str
    text: str
    language: str | None  #: as a code
    duration: float  #: of the file, in seconds
    segments: tuple[Segment, ...]


class Failed(msgspec.Struct, tag="failed", frozen=True, kw_only=True, omit_defaults=True):
    """The final event of a job that did not succeed."""

    id: str
    code: Code
    message: str
    param: str | None = None
    details: dict[str, Any] = {}


class Cancelled(msgspec.Struct, tag="cancelled", frozen=True, kw_only=True):
    """The final event of a job that was cancelled, and what had been done by then."""

    id: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0


Success = TextDone | ImageDone | SpeechDone | TranscriptionDone


Final = Success | Failed | Cancelled


JobEvent = Started | TextDelta | Progress | AudioDelta | SegmentDelta | Final


WorkerEvent = Imported | LoadProgress | Ready | LoadFailed | Heartbeat


Event = JobEvent | WorkerEvent
