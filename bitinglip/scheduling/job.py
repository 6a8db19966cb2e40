"""The second of a request's four shapes: what the gateway knows about a piece of work."""

import hashlib
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Literal

from bitinglip.scheduling.queue.priority import Priority
from workers import protocol

_AFFINITY_CHARACTERS = 1024
_CHARACTERS_PER_TOKEN = 4
_CHARACTERS_PER_SECOND = 15
_BYTES_PER_SECOND = 16_000
_MILLION = 1_000_000


def new_task_id() -> str:
    """Time-ordered and unguessable enough to be a name: 48 bits of milliseconds, 80 of chance."""
    stamp = time.time_ns() // 1_000_000
    return f"task-{stamp:012x}{uuid.uuid4().hex[:20]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _JobBase:
    """The fields that jobs of all kinds have: owner, priority, time limit."""

    model: str
    key_id: str
    stream: bool = False
    timeout: float = 600.0  #: seconds from now on, waiting included
    priority: Priority = field(default_factory=Priority)
    id: str = field(default_factory=new_task_id)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextJob(_JobBase):
    """Text to generate for a caller, all fields checked against the model's manifest."""

    kind: ClassVar[str] = "text"

    sampling: protocol.Sampling
    prompt: str | None = None
    messages: tuple[protocol.ChatMessage, ...] | None = None
    clip_max_tokens: bool = False

    @property
    def work(self) -> float:
        """An estimate in tokens: what the queue is fair in."""
        return self._characters / _CHARACTERS_PER_TOKEN + self.sampling.max_tokens

    def work_done(self, final: protocol.Success | protocol.Cancelled) -> float:
        """Give the tokens that the job took in the end."""
        if isinstance(final, protocol.TextDone | protocol.Cancelled):
            return float(final.prompt_tokens + final.completion_tokens)
        return self.work

    @property
    def _characters(self) -> int:
        if self.prompt is not None:
            return len(self.prompt)
        return sum(len(message.content) for message in self.messages or ())

    def affinity(self) -> bytes:
        """The same for jobs that share a beginning: the turns of one conversation, say."""
        if self.prompt is not None:
            start = self.prompt[:_AFFINITY_CHARACTERS]
        else:
            start = "\0".join(message.content for message in (self.messages or ())[:2])
        return _digest(self.key_id, start[:_AFFINITY_CHARACTERS])

    def message(self) -> protocol.TextJob:
        """The third shape: what goes to the worker. No key, no caller."""
        return protocol.TextJob(
            id=self.id,
            prompt=self.prompt,
            messages=self.messages,
            sampling=self.sampling,
            clip_max_tokens=self.clip_max_tokens,
            stream=self.stream,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageJob(_JobBase):
    """Images to make for a caller."""

    kind: ClassVar[str] = "image"

    prompt: str
    width: int
    height: int
    steps: int
    seeds: tuple[int, ...]  #: one for each image
    folder: str  #: where the worker puts them
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    format: protocol.ImageFormat = "png"
    metadata: bool = True
    preview_every: int = 0
    image: str | None = None  #: path of an uploaded image to begin with
    mask: str | None = None
    strength: float | None = None
    adapters: tuple[protocol.Lora, ...] = ()
    output: Literal["b64", "url"] = "b64"  #: how the answer holds the images

    @property
    def megapixels(self) -> float:
        return len(self.seeds) * self.width * self.height / _MILLION

    @property
    def work(self) -> float:
        """Megapixels times steps."""
        return self.megapixels * self.steps

    def work_done(self, final: protocol.Success | protocol.Cancelled) -> float:
        if isinstance(final, protocol.Cancelled):
            return self.megapixels * min(final.steps, self.steps)
        return self.work

    def affinity(self) -> bytes:
        """The same for one prompt: what encoders made of it is kept by the worker that saw it."""
        return _digest(self.key_id, self.prompt[:_AFFINITY_CHARACTERS])

    def message(self) -> protocol.ImageJob:
        return protocol.ImageJob(
            id=self.id,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=self.width,
            height=self.height,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seeds=self.seeds,
            scheduler=self.scheduler,
            format=self.format,
            metadata=self.metadata,
            preview_every=self.preview_every,
            folder=self.folder,
            image=self.image,
            mask=self.mask,
            strength=self.strength,
            adapters=self.adapters,
            stream=self.stream,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechJob(_JobBase):
    """A text to say for a caller."""

    kind: ClassVar[str] = "speech"

    text: str
    seed: int
    folder: str
    voice: str | None = None
    language: str | None = None
    speed: float | None = None
    format: protocol.AudioFormat = "wav"
    sample_rate: int | None = None
    metadata: bool = True
    output: Literal["b64", "url"] = "b64"

    @property
    def work(self) -> float:
        """Seconds of sound, as people speak."""
        return len(self.text) / _CHARACTERS_PER_SECOND

    def work_done(self, final: protocol.Success | protocol.Cancelled) -> float:
        return final.duration if isinstance(final, protocol.SpeechDone) else self.work

    def affinity(self) -> bytes:
        """The same for one voice, whose tokens a worker keeps."""
        return _digest(self.key_id, f"{self.voice}\0{self.language}")

    def message(self) -> protocol.SpeechJob:
        return protocol.SpeechJob(
            id=self.id,
            text=self.text,
            voice=self.voice,
            language=self.language,
            seed=self.seed,
            speed=self.speed,
            format=self.format,
            sample_rate=self.sample_rate,
            metadata=self.metadata,
            folder=self.folder,
            stream=self.stream,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptionJob(_JobBase):
    """A sound file to write down for a caller."""

    kind: ClassVar[str] = "transcription"

    path: str
    size: int  #: bytes of the file
    max_seconds: float
    max_channels: int
    max_sample_rate: int
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    prompt: str | None = None
    temperature: float = 0.0
    timestamps: Literal["none", "segment", "word"] = "none"

    @property
    def work(self) -> float:
        """Seconds of sound, as files of middling quality hold them."""
        return min(self.max_seconds, self.size / _BYTES_PER_SECOND)

    def work_done(self, final: protocol.Success | protocol.Cancelled) -> float:
        return final.duration if isinstance(final, protocol.TranscriptionDone) else self.work

    def affinity(self) -> bytes:
        """Files share nothing that a worker could keep."""
        return _digest(self.key_id, self.path)

    def message(self) -> protocol.TranscriptionJob:
        return protocol.TranscriptionJob(
            id=self.id,
            path=self.path,
            language=self.language,
            task=self.task,
            prompt=self.prompt,
            temperature=self.temperature,
            timestamps=self.timestamps,
            max_seconds=self.max_seconds,
            max_channels=self.max_channels,
            max_sample_rate=self.max_sample_rate,
            stream=self.stream,
        )


def _digest(key_id: str, text: str) -> bytes:
    whole = f"{key_id}\0{text}".encode("utf-8", "replace")
    return hashlib.blake2b(whole, digest_size=8).digest()


Job = TextJob | ImageJob | SpeechJob | TranscriptionJob
