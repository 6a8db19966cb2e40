"""OpenAI's request for speech, and how a job looks there: the sound itself.

Beside OpenAI's own fields: ``language, seed, sample_rate``.
"""

from base64 import b64encode
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from bitinglip.errors import BitingLipError, FileGone, TaskCancelled, UnsupportedParameter
from bitinglip.results.files import MEDIA_TYPES, Files, outputs_of
from bitinglip.results.streams import sse
from bitinglip.scheduling.event_log import Event, EventLog, error_of
from bitinglip.scheduling.job import SpeechJob
from bitinglip.wire.errors import error_body
from bitinglip.wire.speech.native import Language, SampleRate, SpeechTerms, Speed, Voice
from bitinglip.wire.text.fields import Body, ModelName, Only
from workers import protocol

_FORMATS = {"mp3": "mp3", "opus": "ogg", "flac": "flac", "wav": "wav", "pcm": "wav"}
_PCM_RATE = 24_000
_json = msgspec.json.Encoder()


class SpeechRequest(Body):
    """``POST /v1/audio/speech``; ``pcm`` comes while it is made, the others whole."""

    model: ModelName
    input: Annotated[str, Field(max_length=1_000_000)]
    voice: Voice | None = None
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    speed: Speed | None = None
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: Annotated[Any, Only((None, ""))] = None
    language: Language | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    sample_rate: SampleRate | None = None

    def to_job(self, terms: SpeechTerms) -> SpeechJob:
        """The work that this request asks for."""
        if self.stream_format == "sse" and self.response_format != "pcm":
            raise UnsupportedParameter(
                "'response_format' must be pcm with stream_format sse.", param="response_format"
            )
        is_pcm = self.response_format == "pcm"
        return terms.job(
            model=self.model,
            text=self.input,
            param="input",
            voice=self.voice,
            language=self.language,
            seed=self.seed,
            speed=None if self.speed == 1.0 else self.speed,
            format=_FORMATS[self.response_format],
            # Samples alone do not say their rate, and OpenAI's clients play them at this one.
            sample_rate=self.sample_rate or (_PCM_RATE if is_pcm else None),
            stream=is_pcm,
        )


class SpeechView:
    """A job as sound: a file as one body, samples as they come, or these in events."""

    begins_at_once = False

    def __init__(self, event_log: EventLog, request_id: str, files: Files, *, events: bool) -> None:
        assert isinstance(event_log.job, SpeechJob)
        self._event_log = event_log
        self._job = event_log.job
        self._request_id = request_id
        self._files = files
        self._events = events
        self._body = b""
        self._trouble: BitingLipError | None = None

    @property
    def raw_type(self) -> str | None:
        """Samples have no header."""
        return None if self._events else "audio/pcm"

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self._job.format]

    async def settle(self) -> None:
        """Read the file, where it is the answer."""
        if self._job.stream:
            return
        for made in outputs_of(self._event_log):
            body = await self._files.read(made.id)
            if body is None:
                self._trouble = FileGone()
            self._body = body or b""

    def render(self, event: Event) -> bytes:
        match event:
            case protocol.AudioDelta(samples=samples) if self._events:
                return self._event("delta", audio=b64encode(samples).decode())
            case protocol.AudioDelta(samples=samples):
                return samples
            case protocol.SpeechDone() if self._events:
                return self._event("done")
            case protocol.Failed() if self._events:
                return sse(error_body(error_of(event), self._request_id))
            case protocol.Cancelled() if self._events:
                return sse(error_body(TaskCancelled(), self._request_id))
            case protocol.Failed():
                raise error_of(event)  # an error, or once sound was sent, an end in the middle
            case protocol.Cancelled():
                raise TaskCancelled()
            case _:
                return b""

    def whole(self) -> bytes:
        if self._trouble is not None:
            raise self._trouble
        return self._body

    def _event(self, name: str, **data: Any) -> bytes:
        kind = f"speech.audio.{name}"
        return sse(_json.encode({"type": kind, **data}), kind)
