"""Declares messages to a worker about jobs: one class of job for each kind of model."""

import msgspec

from workers.protocol.files import AudioFormat, ImageFormat


class EmbeddingJob(msgspec.Struct, tag="embedding", frozen=True, kw_only=True, omit_defaults=True):
    """Make a vector of each text; with a query, one number of each: how well it answers that."""

    id: str
    texts: tuple[str, ...]
    query: str | None = None  #: for cross-encoders, which read it together with each text
    prompt_name: str | None = None  #: None: the model's default prompt, if it has one
    dimensions: int | None = None  #: the first ones of each vector; None: all
    truncate: bool = False  #: cut texts that are too long, else refuse them
    stream: bool = False  #: tell of the progress after each batch
    trace: str | None = None  #: the W3C's traceparent of its request, if that is traced


class Lora(msgspec.Struct, frozen=True):
    """Names a LoRA of the settings, and how strongly it is applied."""

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
    format: ImageFormat = "png"
    metadata: bool = True  #: write the parameters into the files
    preview_every: int = 0  #: steps between two previews; 0 is none
    folder: str
    image: str | None = None
    mask: str | None = None
    strength: float | None = None  #: how far from ``image``, 0 to 1; None: the pipeline's own
    adapters: tuple[Lora, ...] = ()
    stream: bool = True  #: without it, only the final event is sent
    trace: str | None = None  #: the W3C's traceparent of its request, if that is traced


class SpeechJob(msgspec.Struct, tag="speech", frozen=True, kw_only=True, omit_defaults=True):
    """Speak a text, into a file of ``folder``."""

    id: str
    text: str
    voice: str | None = None
    language: str | None = None
    instructions: str | None = None  #: how to speak; models here take none
    seed: int
    speed: float | None = None
    stretch: bool = False  #: where the model has no speed, change that of the sound
    format: AudioFormat = "wav"  #: ogg holds Opus, aac ADTS
    sample_rate: int | None = None  #: None: the model's own, or the next that the format has
    metadata: bool = True  #: label the file as made by a machine
    folder: str
    stream: bool = True  #: without it, only the final event is sent
    trace: str | None = None  #: the W3C's traceparent of its request, if that is traced


class TranscriptionJob(
    msgspec.Struct, tag="transcription", frozen=True, kw_only=True, omit_defaults=True
):
    """Transcribe a sound file."""

    id: str
    path: str
    language: str | None = None  #: a code or an English name; None: the model finds out
    task: str = "transcribe"  #: or translate, which is into English
    prompt: str | None = None  #: what might have been said before, for names and spelling
    temperature: float = 0.0  #: where the first attempt at a window begins; later ones go up
    timestamps: str = "none"  #: none, segment or word
    logprobs: bool = False  #: report that of each token of text
    voice_activity: bool = False  #: doubt words where the sound neither rises nor falls
    max_seconds: float  #: a longer file is refused, as one of more channels or samples is
    max_channels: int = 8
    max_sample_rate: int = 768_000
    stream: bool = True  #: without it, only the final event is sent
    trace: str | None = None  #: the W3C's traceparent of its request, if that is traced
