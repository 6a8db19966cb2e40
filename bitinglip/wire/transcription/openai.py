"""OpenAI's requests for transcription, and how a job looks there."""

from typing import Annotated, Any, Literal

import msgspec

from bitinglip.errors import InvalidRequest, UnsupportedParameter
from bitinglip.scheduling.job import Job
from bitinglip.wire.body import Body, ModelName, Only
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.transcription.job import Language, Prompt, Temperature, transcription_job

Form = Literal["json", "text", "srt", "vtt", "verbose_json"]
_TIMED = ("srt", "vtt", "verbose_json")
_json = msgspec.json.Encoder()


class _Fields(Body):
    """What both routes share, beside the file."""

    model: ModelName
    prompt: Prompt | None = None
    response_format: Form = "json"
    temperature: Temperature = 0.0


class TranscriptionRequest(_Fields):
    """``POST /v1/audio/transcriptions``"""

    language: Language | None = None
    timestamp_granularities: list[Literal["word", "segment"]] | None = None
    stream: bool = False
    chunking_strategy: Annotated[Any, Only((None, "auto"))] = None

    def to_job(self, context: JobContext, file_bytes: int) -> Job:
        """The work that this request asks for."""
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise InvalidRequest(
                "'timestamp_granularities' needs the response_format verbose_json.",
                param="timestamp_granularities",
            )
        if self.stream and self.response_format not in ("json", "text"):
            raise UnsupportedParameter(
                "'response_format' must be json or text with 'stream'.", param="response_format"
            )
        words = "word" in (self.timestamp_granularities or ())
        timed = "segment" if self.response_format in _TIMED else "none"
        return transcription_job(
            context,
            file_bytes,
            language=self.language,
            prompt=self.prompt,
            temperature=self.temperature,
            timestamps="word" if words else timed,
            stream=self.stream,
        )


class TranslationRequest(_Fields):
    """``POST /v1/audio/translations``: into English."""

    timestamp_granularities: Annotated[Any, Only((None,))] = None
    stream: Annotated[Any, Only((None, False))] = None

    def to_job(self, context: JobContext, file_bytes: int) -> Job:
        """The work that this request asks for."""
        return transcription_job(
            context,
            file_bytes,
            task="translate",
            prompt=self.prompt,
            temperature=self.temperature,
            timestamps="segment" if self.response_format in _TIMED else "none",
            stream=False,
        )
