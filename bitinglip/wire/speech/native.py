"""The native API's request for speech, and how its result looks."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bitinglip.errors import InvalidRequest
from bitinglip.results.files import PREFIX
from bitinglip.scheduling.job import SpeechJob
from bitinglip.scheduling.queue.priority import Priority, RequestPriority
from bitinglip.settings import SpeechLimits, SpeechModel, Tier
from bitinglip.wire.text.fields import Body, ModelName, Timeout
from workers import protocol

_MOST_CHARACTERS = 1_000_000  #: before the settings are asked
_RANDOM_SEEDS = 2**32

Voice = Annotated[str, Field(min_length=1, max_length=128)]
Language = Annotated[str, Field(min_length=2, max_length=16)]
Speed = Annotated[float, Field(ge=0.25, le=4)]
Format = Literal["wav", "flac", "ogg", "mp3"]
SampleRate = Annotated[int, Field(ge=8000, le=48_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechTerms:
    """What the server, the model and the caller's key give a request for speech."""

    own: SpeechModel
    limits: SpeechLimits
    tier: Tier
    key_id: str
    timeout: float
    priority: Priority
    folder: Path

    def job(
        self, *, text: str, param: str, voice: str | None, seed: int | None = None, **more: Any
    ) -> SpeechJob:
        """The work; ``param`` is what the surface calls the text."""
        most = self.limits.max_characters
        if self.tier.speech.max_characters is not None:
            most = min(most, self.tier.speech.max_characters)
        if not text.strip():
            raise InvalidRequest(f"'{param}' holds nothing to say.", param=param)
        if len(text) > most:
            raise InvalidRequest(
                f"'{param}' has {len(text)} characters; at most {most} are allowed.",
                param=param,
                details={"characters": len(text), "max_characters": most},
            )
        defaults: dict[str, Any] = {"timeout": self.timeout, "language": self.own.language}
        given = {name: value for name, value in more.items() if value is not None}
        return SpeechJob(
            key_id=self.key_id,
            text=text,
            voice=voice or self.own.voice,
            seed=secrets.randbelow(_RANDOM_SEEDS) if seed is None else seed,
            folder=str(self.folder),
            metadata=self.own.metadata,
            priority=self.priority,
            **(defaults | given),
        )


class SpeechRequest(Body):
    """A text to say. ``voice`` is one of the model's, or ``speaker_1`` with a ``language``."""

    model: ModelName
    text: Annotated[str, Field(max_length=_MOST_CHARACTERS)]
    voice: Voice | None = None
    language: Language | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    speed: Speed | None = None
    format: Format = "wav"
    sample_rate: SampleRate | None = None
    output: Literal["b64", "url"] = "b64"
    timeout: Timeout | None = None
    stream: bool = False
    priority: RequestPriority = "normal"
    asynchronous: Annotated[bool, Field(alias="async")] = False

    def to_job(self, terms: SpeechTerms) -> SpeechJob:
        """The work that this request asks for."""
        return terms.job(
            model=self.model,
            text=self.text,
            param="text",
            voice=self.voice,
            language=self.language,
            seed=self.seed,
            speed=self.speed,
            format=self.format,
            sample_rate=self.sample_rate,
            output=self.output,
            stream=self.stream,
            timeout=self.timeout,
        )


def speech_result(job: SpeechJob, spoken: protocol.SpeechDone) -> dict[str, Any]:
    """``result`` of an InferenceResponse; bytes are filled in by ``results.files``."""
    name = protocol.sound_name(job.id, spoken.format)
    place = {"url": PREFIX + name} if job.output == "url" else {"audio": None, "file": name}
    return {
        **place,
        "format": spoken.format,
        "sample_rate": spoken.sample_rate,
        "duration": round(spoken.duration, 6),
        "sentences": spoken.sentences,
        "voice": spoken.voice,
        "seed": job.seed,
    }


def speech_usage(job: SpeechJob, final: protocol.SpeechDone | protocol.Cancelled) -> dict[str, Any]:
    """What is charged: seconds of sound."""
    seconds = final.duration if isinstance(final, protocol.SpeechDone) else 0.0
    return {"characters": len(job.text), "audio_seconds": round(seconds, 6)}
