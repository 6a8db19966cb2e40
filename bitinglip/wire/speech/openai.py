"""OpenAI's surface takes this request for speech.

Our additional fields are ``language, seed, sample_rate``.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from bitinglip.errors import UnsupportedParameter
from bitinglip.scheduling.job import Job
from bitinglip.wire.body import AllowedValues, ModelName
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.openai_body import OpenAIRequest
from bitinglip.wire.speech.job import Language, SampleRate, Speed, Voice, speech_job

_FORMATS = {"mp3": "mp3", "opus": "ogg", "flac": "flac", "wav": "wav", "pcm": "wav"}
_PCM_RATE = 24_000


class SpeechRequest(OpenAIRequest):
    """The body of ``POST /v1/audio/speech``; ``pcm`` is streamed, other formats are not."""

    model: ModelName
    input: Annotated[str, Field(max_length=1_000_000)]
    voice: Voice | None = None
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] | None = None  #: mp3
    speed: Speed | None = None
    stream_format: Literal["audio", "sse"] | None = None  #: audio
    instructions: Annotated[Any, AllowedValues((None, ""))] = None
    language: Language | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    sample_rate: SampleRate | None = None

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        if self.stream_format == "sse" and self.response_format != "pcm":
            raise UnsupportedParameter(
                "'response_format' must be pcm with stream_format sse.", param="response_format"
            )
        is_pcm = self.response_format == "pcm"
        return speech_job(
            context,
            text=self.input,
            param="input",
            voice=self.voice,
            language=self.language,
            seed=self.seed,
            speed=None if self.speed == 1.0 else self.speed,
            format=_FORMATS[self.response_format or "mp3"],
            # Samples alone do not say their rate, and OpenAI's clients play them at this one.
            sample_rate=self.sample_rate or (_PCM_RATE if is_pcm else None),
            stream=is_pcm,
        )
