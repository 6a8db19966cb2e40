"""Declares messages from a worker: its own state, and the events of jobs, each
ended by one final."""

from typing import Literal

import msgspec

from workers.codes import Code, LoadCode
from workers.faults import FaultName
from workers.protocol.bounds import (
    Count,
    Details,
    Dimensions,
    Fraction,
    JobId,
    Message,
    Name,
    Number,
    Preview,
    SampleRate,
    Samples,
    Seconds,
    Size,
    Slots,
    StepSeconds,
    Vectors,
)
from workers.protocol.files import AudioFormat, ImageFormat
from workers.protocol.load import DeviceKind
from workers.protocol.marks import Ends, OfJob, Succeeds


class Imported(msgspec.Struct, tag="imported", frozen=True):
    """The process is up with its libraries imported; it has no model yet."""


class LoadProgress(msgspec.Struct, tag="load_progress", frozen=True):
    fraction: Fraction


class CopyProgress(msgspec.Struct, tag="copy_progress", frozen=True):
    """Tells how the model's files come to the node of its worker, before it loads them."""

    node: Name
    bytes: Size
    total: Size


class Confined(msgspec.Struct, frozen=True, kw_only=True):
    """Tells how a worker has confined itself; ``missing`` says what it could not do, and why."""

    measures: tuple[Name, ...] = ()
    missing: tuple[Message, ...] = ()


class Ready(msgspec.Struct, tag="ready", frozen=True, kw_only=True):
    """Tells that the model answers from now on, and what the engine found out about it."""

    slots: Slots  #: how many jobs it runs at once; more wait in the gateway
    max_context: Count | None = None
    memory_bytes: Size = 0  #: of its device's memory; on a CPU the process's own
    load_seconds: Seconds = 0.0
    storage_bytes: Size = 0  #: read from storage for it, and not from the system's cache
    dtype: Name | None = None
    quantization: Name | None = None  #: of its weights; None: they are in full precision
    device: DeviceKind = "cpu"
    has_chat_template: bool = False
    step_timeout: StepSeconds = (
        0.0  #: seconds that one step may take, where that is longer than silence may
    )
    confined: Confined = Confined()
    #: text: why its sequences are computed one by one; None: they are computed together
    sequential: Message | None = None


#: What a worker is busy with that may take minutes: compiling, or the first use of kernels.
Activity = Literal["compile", "warmup"]


class Working(msgspec.Struct, tag="working", frozen=True):
    """Tells before and after (None) work that is silent and no sign of a stuck loop."""

    activity: Activity | None


class LoadFailed(msgspec.Struct, tag="load_failed", frozen=True, kw_only=True):
    """The model could not be loaded; the process ends."""

    code: LoadCode
    message: Message
    fault: FaultName | None = None  #: the class of what went wrong, if it has one


class Broken(msgspec.Struct, tag="broken", frozen=True, kw_only=True):
    """Tells the worker's last word: an error has ended its loop, and the process ends at once."""

    fault: FaultName | None = None  #: None for an error of no class
    error: Name  #: the type of the error


class Heartbeat(msgspec.Struct, tag="heartbeat", frozen=True, kw_only=True):
    """Tells that the worker's own loop runs: silence means that the loop is stuck."""

    steps: Size
    in_flight: Count
    memory_bytes: Size


class Started(OfJob, tag="started", frozen=True, kw_only=True):
    id: JobId
    prompt_tokens: Count = 0


class EmbeddingDone(Succeeds, tag="embedding_done", frozen=True, kw_only=True, omit_defaults=True):
    """Ends an embedding job that succeeded; scores are vectors of one number."""

    id: JobId
    vectors: Vectors  #: float32, little-endian, one text's after another's
    dimensions: Dimensions  #: of each vector
    prompt_tokens: Count
    cut: tuple[Count, ...] = ()  #: the texts of which only the beginning was read


class Progress(OfJob, tag="progress", frozen=True, kw_only=True, omit_defaults=True):
    """Tells a job's progress: ``step`` of its ``steps`` are done."""

    id: JobId
    step: Count
    steps: Count
    preview: Preview = b""  #: a small JPEG of the first image as it is now


class ImageFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Describes an image that was made; ``image_file_name`` names its file."""

    width: Count
    height: Count
    seed: int
    format: ImageFormat
    bytes: Size
    filtered: bool = False  #: the model's own safety checker made it black


class ImageDone(Succeeds, tag="image_done", frozen=True, kw_only=True, omit_defaults=True):
    """Ends an image job that succeeded; it has one image for each seed, in order."""

    id: JobId
    images: tuple[ImageFile, ...]
    steps: Count  #: as the scheduler counted them
    scheduler: Name
    guidance_scale: Number | None = None
    memory_fallbacks: tuple[Name, ...] = ()  #: what was done to save memory, where it was short


class AudioDelta(OfJob, tag="audio_delta", frozen=True, kw_only=True):
    """Holds the next piece of a job's sound: 16-bit little-endian samples of one channel."""

    id: JobId
    index: Count
    samples: Samples
    sample_rate: SampleRate


class SpeechDone(Succeeds, tag="speech_done", frozen=True, kw_only=True, omit_defaults=True):
    """Ends a speech job that succeeded; ``audio_file_name`` names its file."""

    id: JobId
    format: AudioFormat
    bytes: Size
    sample_rate: SampleRate
    duration: Seconds
    sentences: Count
    voice: Name | None = None


class Word(msgspec.Struct, frozen=True):
    """Times in seconds from the start of the file, here and in segments."""

    start: Number
    end: Number
    text: str


class Segment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Holds a piece of a transcript; the last four fields are of the window that it
    was found in."""

    start: Number
    end: Number
    text: str
    tokens: tuple[Count, ...]
    words: tuple[Word, ...] = ()
    logprobs: tuple[tuple[bytes, Number], ...] = ()  #: of each token of text: its bytes, and that
    avg_logprob: Number
    no_speech_prob: Number
    temperature: Number
    compression_ratio: Number


class SegmentDelta(OfJob, tag="segment_delta", frozen=True, kw_only=True):
    """Holds the next segment of a transcription; the segments before it will not change."""

    id: JobId
    segment: Segment
    index: Count


class TranscriptionDone(
    Succeeds, tag="transcription_done", frozen=True, kw_only=True, omit_defaults=True
):
    """Ends a transcription that succeeded."""

    id: JobId
    text: str
    language: Name | None  #: as a code
    language_name: Name | None = None  #: in English
    duration: Seconds  #: of the file, in seconds
    segments: tuple[Segment, ...]


class Failed(Ends, tag="failed", frozen=True, kw_only=True, omit_defaults=True):
    """Ends a job that did not succeed.

    A failure by what the client asked for tells the tokens that were computed before: a text that
    is not of its form has cost what it would have cost otherwise.
    """

    id: JobId
    code: Code
    message: Message
    param: Name | None = None
    details: Details = msgspec.field(default_factory=dict)
    retry_after: Seconds | None = None  #: known to the gateway, for jobs that it ends itself
    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class Cancelled(Ends, tag="cancelled", frozen=True, kw_only=True):
    """Ends a job that was cancelled, and tells what had been done by then."""

    id: JobId
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    steps: Count = 0
