"""The native API's request for transcription, and how its result looks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from bitinglip.errors import PayloadTooLarge
from bitinglip.scheduling.job import TranscriptionJob, new_task_id
from bitinglip.scheduling.queue.priority import Priority, RequestPriority
from bitinglip.settings import Tier, TranscriptionLimits
from bitinglip.wire.text.fields import Body, ModelName, Timeout
from workers import protocol

Language = Annotated[str, Field(min_length=2, max_length=32)]
Prompt = Annotated[str, Field(max_length=4096)]
Temperature = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptionTerms:
    """What the server and the caller's key give a request for transcription."""

    limits: TranscriptionLimits
    tier: Tier
    key_id: str
    timeout: float
    priority: Priority
    folder: Path

    def job(self, *, size: int, timeout: float | None = None, **more: Any) -> TranscriptionJob:
        """The work; the file, of so many bytes, is to be written where it says that it is.
        Raises PayloadTooLarge."""
        most = self.tier.transcription.max_bytes
        if most is not None and size > most:
            raise PayloadTooLarge(f"A file of this key may have {most} bytes; this has {size}.")
        task_id = new_task_id()
        seconds = (self.limits.max_seconds, self.tier.transcription.max_seconds)
        return TranscriptionJob(
            id=task_id,
            key_id=self.key_id,
            path=str(self.folder / f"{task_id}-file"),
            size=size,
            max_seconds=min(each for each in seconds if each is not None),
            max_channels=self.limits.max_channels,
            max_sample_rate=self.limits.max_sample_rate,
            timeout=timeout or self.timeout,
            priority=self.priority,
            **more,
        )


class TranscriptionFields(Body):
    """Beside the ``file`` of a form."""

    model: ModelName
    language: Language | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    prompt: Prompt | None = None
    temperature: Temperature = 0.0
    timestamps: Literal["none", "segment", "word"] = "segment"
    timeout: Timeout | None = None
    stream: bool = False
    priority: RequestPriority = "normal"
    asynchronous: Annotated[bool, Field(alias="async")] = False

    def to_job(self, terms: TranscriptionTerms, size: int) -> TranscriptionJob:
        """The work that this request asks for, of a file of so many bytes."""
        return terms.job(
            model=self.model,
            size=size,
            language=self.language,
            task=self.task,
            prompt=self.prompt,
            temperature=self.temperature,
            timestamps=self.timestamps,
            stream=self.stream,
            timeout=self.timeout,
        )


class TranscriptionRequest(TranscriptionFields):
    """The same as JSON: the file in base64."""

    audio: str


def transcription_result(done: protocol.TranscriptionDone) -> dict[str, Any]:
    """``result`` of an InferenceResponse."""
    return {
        "text": done.text,
        "language": done.language,
        "duration": round(done.duration, 3),
        "segments": [segment_info(number, each) for number, each in enumerate(done.segments)],
    }


def segment_info(number: int, segment: protocol.Segment) -> dict[str, Any]:
    return {"id": number, **msgspec.to_builtins(segment)}


def transcription_usage(final: protocol.TranscriptionDone | protocol.Cancelled) -> dict[str, Any]:
    """What is charged: seconds of sound."""
    seconds = final.duration if isinstance(final, protocol.TranscriptionDone) else 0.0
    return {"audio_seconds": round(seconds, 3)}
