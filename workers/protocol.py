"""Every message between the gateway and a worker. Imports neither side; see workers.framing."""

from typing import Any

import msgspec

from workers.codes import Code, LoadCode

# ---- to the worker ---------------------------------------------------------------------------


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The sampling parameters. ``None`` means off; every number is checked before it gets here."""

    max_tokens: int
    temperature: float = 0.0  #: 0 is greedy: the arg max, ties to the lowest id
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None  #: how many alternatives to report beside each sampled token
    #: The same seed gives the same tokens: on a CPU whatever runs beside it, on a card in the same
    #: batch, since products of other sizes round otherwise there.
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str


class TextJob(msgspec.Struct, tag="text", frozen=True, kw_only=True):
    """Generate text from a prompt, or from messages through the model's chat template."""

    id: str
    prompt: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    sampling: Sampling
    clip_max_tokens: bool = False  #: cut max_tokens to what the context leaves, else refuse
    stream: bool = True  #: without it, only the final event is sent


class Lora(msgspec.Struct, frozen=True):
    """A LoRA: a name of the settings, and how strongly it is applied."""

    name: str
    scale: float = 1.0


class ImageJob(msgspec.Struct, tag="image", frozen=True, kw_only=True, omit_defaults=True):
    """Make images from a prompt, one for each seed, into files of ``folder``.

    With ``image`` (a path) they are made from that one, with ``mask`` only where it is white.
    """

    id: str
    prompt: str
    negative_prompt: str | None = None
    width: int  #: pixels
    height: int
    steps: int
    guidance_scale: float | None = None  #: None: the pipeline's own
    seeds: tuple[int, ...]
    scheduler: str | None = None  #: None: the model's own
    format: str = "png"  #: png, jpeg or webp
    metadata: bool = True  #: write the parameters into the files
    preview_every: int = 0  #: steps between two previews; 0 is none
    folder: str
    image: str | None = None
    mask: str | None = None
    strength: float | None = None  #: how far from ``image``, 0 to 1; None: the pipeline's own
    adapters: tuple[Lora, ...] = ()
    stream: bool = True  #: without it, only the final event is sent


class SpeechJob(msgspec.Struct, tag="speech", frozen=True, kw_only=True, omit_defaults=True):
    """Say a text, into a file of ``folder``."""

    id: str
    text: str
    voice: str | None = None
    language: str | None = None
    seed: int
    speed: float | None = None
    format: str = "wav"  #: wav, flac, ogg (Opus) or mp3
    sample_rate: int | None = None  #: None: the model's own, or the next that the format has
    metadata: bool = True  #: label the file as made by a machine
    folder: str
    stream: bool = True  #: without it, only the final event is sent


class TranscriptionJob(
    msgspec.Struct, tag="transcription", frozen=True, kw_only=True, omit_defaults=True
):
    """Write down what is said in a sound file."""

    id: str
    path: str
    language: str | None = None  #: a code or an English name; None: the model finds out
    task: str = "transcribe"  #: or translate, which is into English
    prompt: str | None = None  #: what might have been said before, for names and spelling
    temperature: float = 0.0  #: where the first attempt at a window begins; later ones go up
    timestamps: str = "none"  #: none, segment or word
    max_seconds: float  #: a longer file is refused, as one of more channels or samples is
    max_channels: int = 8
    max_sample_rate: int = 768_000
    stream: bool = True  #: without it, only the final event is sent


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    id: str


class FakeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The behaviour that the fake engine pretends (``models.<name>.fake.*``)."""

    load_seconds: float = 0.0
    tokens_per_second: float = 0.0  #: per request; 0 is as fast as it can
    memory_bytes: int = 0
    batch_size: int = 64
    faults: bool = False  #: obey prompts that begin with !crash, !hang, !oom, !slow, !garbage
    load_fault: str | None = None  #: what loading does instead: crash, hang, oom, garbage, error


class ImageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The image engine's options for a pipeline (``models.<name>.image.*``)."""

    offload: str = "none"  #: what lies in host memory while unused: none, model or group
    compile: bool = False  #: compile the blocks of the denoiser, with a warm-up at load
    step_cache: str = "none"  #: skip what changes little between steps: none or first_block
    loras: dict[str, str] = {}  #: LoRA files by name


class SpeechOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The files that a speech model needs beside its own (``models.<name>.speech.*``)."""

    vocoder: str | None = None  #: the folder of the model that makes spectrograms sound
    voices: dict[str, str] = {}  #: files of speaker vectors by name


class Load(msgspec.Struct, tag="load", frozen=True, kw_only=True):
    """The first message of every worker: which model to become. Holds no secret."""

    model: str
    engine: str  #: a key of ``workers.engines.registry.ENGINES``
    path: str
    device: str = "cpu"  #: "cpu" or "cuda"
    visible_devices: str = ""  #: CUDA_VISIBLE_DEVICES for this worker
    dtype: str | None = None  #: None: the files' own, where the device computes it well
    max_context: int | None = None  #: None: the model's own
    kv_cache_bytes: int | None = None  #: None: the engine's default for the device
    max_batch: int | None = None
    threads: int | None = None  #: CPU threads; None: all cores
    image: ImageOptions | None = None
    speech: SpeechOptions | None = None
    heartbeat_seconds: float = 1.0
    fake: FakeOptions | None = None


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Leave the loop, close the engine, exit with 0."""


Job = TextJob | ImageJob | SpeechJob | TranscriptionJob
Command = Load | TextJob | ImageJob | SpeechJob | TranscriptionJob | Cancel | Stop

# ---- from the worker -------------------------------------------------------------------------


class Imported(msgspec.Struct, tag="warm", frozen=True):
    """The process is up with its libraries imported; it has no model yet."""


class LoadProgress(msgspec.Struct, tag="load_progress", frozen=True):
    fraction: float


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


class TextDelta(msgspec.Struct, tag="token", frozen=True, kw_only=True, omit_defaults=True):
    """Text that may be shown: never half a character, never part of a stop sequence."""

    id: str
    text: str
    index: int  #: of the last sampled token this text comes from, from 0
    logprobs: tuple[TokenLogprob, ...] = ()


class TextDone(msgspec.Struct, tag="done", frozen=True, kw_only=True, omit_defaults=True):
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


class ImageDone(msgspec.Struct, tag="drawn", frozen=True, kw_only=True, omit_defaults=True):
    """The final event of an image job that succeeded; one picture for each seed, in order."""

    id: str
    pictures: tuple[ImageFile, ...]
    steps: int  #: as the scheduler counted them
    scheduler: str
    guidance_scale: float | None = None
    memory_fallbacks: tuple[str, ...] = ()  #: what was done to save memory, where it was short


class AudioDelta(msgspec.Struct, tag="sound", frozen=True, kw_only=True):
    """The next piece of a job's sound: 16-bit little-endian samples of one channel."""

    id: str
    index: int
    samples: bytes
    sample_rate: int


class SpeechDone(msgspec.Struct, tag="spoken", frozen=True, kw_only=True, omit_defaults=True):
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


class SegmentDelta(msgspec.Struct, tag="heard", frozen=True, kw_only=True):
    """The next segment of a transcription; the segments before it will not change."""

    id: str
    segment: Segment
    index: int


class TranscriptionDone(msgspec.Struct, tag="transcribed", frozen=True, kw_only=True):
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


def picture_name(job_id: str, index: int, image_format: str) -> str:
    """The file of one image of a job; both sides know it without being told."""
    return f"{job_id}-{index}.{image_format}"


def sound_name(job_id: str, audio_format: str) -> str:
    return f"{job_id}-0.{audio_format}"
