"""OpenAI's surface takes this request for speech.

Our additional fields are ``language, seed, sample_rate``.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from bitinglip.errors import UnsupportedParameter
from bitinglip.scheduling.job import Job
from bitinglip.wire.body import ModelName, named_language
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.openai_body import OpenAIBody, OpenAIRequest
from bitinglip.wire.speech.job import Language, SampleRate, Speed, Voice, speech_job
from bitinglip.wire.speech.voices import own_voice

_FORMATS = {
    "mp3": "mp3",
    "opus": "ogg",
    "aac": "aac",
    "flac": "flac",
    "wav": "wav",
    "pcm": "wav",
}
_PCM_RATE = 24_000


class CustomVoice(OpenAIBody):
    """Names a voice as OpenAI's clients name those that are their own."""

    id: Voice


class SpeechRequest(OpenAIRequest):
    """Holds the body of ``POST /v1/audio/speech``; ``pcm`` is streamed, other formats are not.

    ``instructions`` of how to speak are hints that only models of other servers may take: for
    those here they are left out of account, and said to be.
    """

    model: ModelName
    input: Annotated[str, Field(max_length=1_000_000)]
    voice: Voice | CustomVoice | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None  #: mp3
    speed: Speed | None = None
    stream_format: Literal["audio", "sse"] | None = None  #: audio
    instructions: Annotated[str, Field(max_length=16_384)] | None = None
    language: Language | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    sample_rate: SampleRate | None = None

    def to_job(self, context: JobContext, voices: Sequence[Mapping[str, str | None]] | None) -> Job:
        """Make the job that this request asks for of a model with these voices.

        None: another server knows them, and may take instructions. Raises InvalidRequest.
        """
        if self.stream_format == "sse" and self.response_format != "pcm":
            raise UnsupportedParameter(
                "'response_format' must be pcm with stream_format sse.", param="response_format"
            )
        is_pcm = self.response_format == "pcm"
        return speech_job(
            context,
            text=self.input,
            param="input",
            voice=self._voice(context, voices),
            language=self.language,
            instructions=self.instructions if voices is None else None,
            seed=self.seed,
            speed=None if self.speed == 1.0 else self.speed,
            stretch=True,
            format=_FORMATS[self.response_format or "mp3"],
            # Samples alone do not say their rate, and OpenAI's clients play them at this one.
            sample_rate=self.sample_rate or (_PCM_RATE if is_pcm else None),
            stream=is_pcm,
        )

    def _voice(
        self, context: JobContext, voices: Sequence[Mapping[str, str | None]] | None
    ) -> str | None:
        """Return the voice, by the settings' names, the model's own, or OpenAI's."""
        name = self.voice.id if isinstance(self.voice, CustomVoice) else self.voice
        if name is None or voices is None or name in context.model_settings.speech.voice_aliases:
            return name
        language = named_language(self.language) or context.model_settings.speech.language
        return own_voice(name, voices, language)
