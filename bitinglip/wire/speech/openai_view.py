"""How OpenAI's surface shows a speech job: the audio itself, whole or streamed."""

from base64 import b64encode
from typing import Any

import msgspec

from bitinglip.errors import BitingLipError, FileGone, TaskCancelled
from bitinglip.results.files import MEDIA_TYPES, Files, outputs_of
from bitinglip.results.streams import sse
from bitinglip.scheduling.event_log import Event, EventLog, error_of
from bitinglip.wire.errors import error_body
from workers import protocol

_json = msgspec.json.Encoder()


class SpeechView:
    """A job as sound: a file as one body, samples as they come, or these in events."""

    starts_immediately = False

    def __init__(self, event_log: EventLog, request_id: str, files: Files, *, events: bool) -> None:
        assert isinstance(event_log.job.work, protocol.SpeechJob)
        self._event_log = event_log
        self._work = event_log.job.work
        self._request_id = request_id
        self._files = files
        self._events = events
        self._body = b""
        self._error: BitingLipError | None = None

    @property
    def stream_media_type(self) -> str | None:
        """Samples have no header."""
        return None if self._events else "audio/pcm"

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self._work.format]

    async def settle(self) -> None:
        """Read the file, where it is the answer."""
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
        if self._error is not None:
            raise self._error
        return self._body

    def _event(self, name: str, **data: Any) -> bytes:
        kind = f"speech.audio.{name}"
        return sse(_json.encode({"type": kind, **data}), kind)
