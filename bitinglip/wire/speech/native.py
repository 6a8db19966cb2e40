"""The native API takes this request for speech."""

from typing import Annotated, Literal

from pydantic import Field

from bitinglip.scheduling.job import Job
from bitinglip.scheduling.queue.priority import RequestPriority
from bitinglip.wire.body import Body, ModelName, Timeout
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.speech.job import (
    _MOST_CHARACTERS,
    Language,
    SampleRate,
    Speed,
    Voice,
    speech_job,
)

Format = Literal["wav", "flac", "ogg", "mp3"]


class SpeechRequest(Body):
    """Asks to speak a text in one of the model's voices, or ``speaker_1`` with a ``language``."""

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

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        return speech_job(
            context,
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
