"""OpenAI's surface shows a speech job as audio: one file, or a stream."""

from base64 import b64encode
from typing import Any

import msgspec

from bitinglip.errors import BitingLipError, FileGone, TaskCancelled
from bitinglip.results.files import MEDIA_TYPES, Files, outputs_of
from bitinglip.results.streams import sse
from bitinglip.scheduling.event_log import Event, EventLog, error_of
from bitinglip.wire.openai_view import OpenAIView
from workers import protocol

_json = msgspec.json.Encoder()


class SpeechView(OpenAIView):
    """Shows a job as a file in one body, as a stream of samples, or as events with samples."""

    def __init__(self, event_log: EventLog, request_id: str, files: Files, *, events: bool) -> None:
        super().__init__(event_log, request_id)
        assert isinstance(event_log.job.work, protocol.SpeechJob)
        self._work = event_log.job.work
        self._files = files
        self._events = events
        self._body = b""
        self._error: BitingLipError | None = None

    @property
    def stream_media_type(self) -> str | None:
        """Return the type of bare samples; None for events."""
        return None if self._events else "audio/pcm"

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self._work.format]

    async def prepare_final(self) -> None:
        """Read the file, unless its samples were streamed."""
        if self._work.stream:
            return
        for made in outputs_of(self._event_log):
            body = await self._files.read(made.id)
            if body is None:
                self._error = FileGone()
            self._body = body or b""

    def render(self, event: Event) -> bytes:
        match event:
            case protocol.AudioDelta(samples=samples) if self._events:
                return self._event("delta", audio=b64encode(samples).decode())
            case protocol.AudioDelta(samples=samples):
                return samples
            case protocol.SpeechDone() if self._events:
                return self._event("done")
            case protocol.Failed() if not self._events:
                raise error_of(event)  # an error response, or an end in the middle of the audio
            case protocol.Cancelled() if not self._events:
                raise TaskCancelled()
            case _:
                return super().render(event)

    def body(self) -> bytes:
        if self._error is not None:
            raise self._error
        return self._body

    def _event(self, name: str, **data: Any) -> bytes:
        kind = f"speech.audio.{name}"
        return sse(_json.encode({"type": kind, **data}), kind)
