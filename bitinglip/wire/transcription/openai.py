"""OpenAI's surface takes these requests for transcription."""

from typing import Annotated, Any, Literal

from bitinglip.errors import InvalidRequest, UnsupportedParameter
from bitinglip.scheduling.job import Job
from bitinglip.wire.body import AllowedValues, ModelName
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.openai_body import OpenAIRequest
from bitinglip.wire.transcription.job import Language, Prompt, Temperature, transcription_job

Form = Literal["json", "text", "srt", "vtt", "verbose_json"]
_TIMED = ("srt", "vtt", "verbose_json")


class _Fields(OpenAIRequest):
    """Holds the fields that both routes share."""

    model: ModelName
    prompt: Prompt | None = None
    response_format: Form | None = None  #: json
    temperature: Temperature | None = None


class TranscriptionRequest(_Fields):
    """Holds the fields of ``POST /v1/audio/transcriptions``, without its file."""

    language: Language | None = None
    timestamp_granularities: list[Literal["word", "segment"]] | None = None
    stream: bool | None = None
    include: list[Literal["logprobs"]] | None = None
    chunking_strategy: Annotated[Any, AllowedValues((None, "auto"))] = None
    keywords: Annotated[Any, AllowedValues((None, []))] = None
    known_speaker_names: Annotated[Any, AllowedValues((None, []))] = None
    known_speaker_references: Annotated[Any, AllowedValues((None, []))] = None
    languages: Annotated[Any, AllowedValues((None, []))] = None

    def to_job(self, context: JobContext, file_bytes: int) -> Job:
        """Make the job for a file of so many bytes. Raises InvalidRequest or PayloadTooLarge."""
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise InvalidRequest(
                "'timestamp_granularities' needs the response_format verbose_json.",
                param="timestamp_granularities",
            )
        if self.stream and self.response_format not in (None, "json", "text"):
            raise UnsupportedParameter(
                "'response_format' must be json or text with 'stream'.", param="response_format"
            )
        if self.include and self.response_format not in (None, "json"):
            raise UnsupportedParameter("'include' needs the response_format json.", param="include")
        words = "word" in (self.timestamp_granularities or ())
        timed = "segment" if self.response_format in _TIMED else "none"
        return transcription_job(
            context,
            file_bytes,
            language=self.language,
            prompt=self.prompt,
            temperature=self.temperature or 0.0,
            timestamps="word" if words else timed,
            logprobs=bool(self.include),
            stream=bool(self.stream),
        )


class TranslationRequest(_Fields):
    """Holds the fields of ``POST /v1/audio/translations``, which translates into English."""

    timestamp_granularities: Annotated[Any, AllowedValues((None,))] = None
    stream: Annotated[Any, AllowedValues((None, False))] = None

    def to_job(self, context: JobContext, file_bytes: int) -> Job:
        """Make the job for a file of so many bytes. Raises InvalidRequest or PayloadTooLarge."""
        return transcription_job(
            context,
            file_bytes,
            task="translate",
            prompt=self.prompt,
            temperature=self.temperature or 0.0,
            timestamps="segment" if self.response_format in _TIMED else "none",
            stream=False,
        )
