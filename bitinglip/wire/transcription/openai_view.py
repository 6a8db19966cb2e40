"""How OpenAI's surface shows a transcription: text, subtitles, JSON or events."""

from typing import Any

import msgspec

from bitinglip.errors import TaskCancelled
from bitinglip.results.streams import sse
from bitinglip.scheduling.event_log import Event, EventLog, error_of
from bitinglip.wire.errors import error_body
from bitinglip.wire.transcription.openai import Form
from bitinglip.wire.transcription.result import segment_info
from bitinglip.wire.transcription.subtitles import srt, vtt
from workers import protocol

_json = msgspec.json.Encoder()


class TranscriptionView:
    """A job as OpenAI's transcriptions look, in the form that was asked for."""

    starts_immediately = False
    stream_media_type = None

    def __init__(
        self, event_log: EventLog, request_id: str, *, form: Form, granularities: tuple[str, ...]
    ) -> None:
        assert isinstance(event_log.job.work, protocol.TranscriptionJob)
        self._event_log = event_log
        self._work = event_log.job.work
        self._request_id = request_id
        self._form = form
        self._granularities = granularities

    @property
    def media_type(self) -> str:
        json = self._form in ("json", "verbose_json")
        return "application/json" if json else "text/plain; charset=utf-8"

    async def settle(self) -> None:
        """Nothing to do: the text is in the event itself."""
        assert self._event_log.final is not None

    def render(self, event: Event) -> bytes:
        match event:
            case protocol.SegmentDelta(segment=segment):
                return _event("delta", delta=segment.text)
            case protocol.TranscriptionDone(text=text):
                return _event("done", text=text)
            case protocol.Failed():
                return sse(error_body(error_of(event), self._request_id))
            case protocol.Cancelled():
                return sse(error_body(TaskCancelled(), self._request_id))
            case _:
                return b""

    def whole(self) -> bytes:
        done = self._event_log.final
        assert isinstance(done, protocol.TranscriptionDone)
        match self._form:
            case "text":
                return f"{done.text}\n".encode()
            case "srt":
                return srt(done.segments).encode()
            case "vtt":
                return vtt(done.segments).encode()
            case "verbose_json":
                return _json.encode(self._verbose(done))
        return _json.encode({"text": done.text})

    def _verbose(self, done: protocol.TranscriptionDone) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "task": self._work.task,
            "language": done.language,
            "duration": done.duration,
            "text": done.text,
        }
        if "segment" in self._granularities:
            answer["segments"] = [
                {"seek": 0, **segment_info(number, each)}
                for number, each in enumerate(done.segments)
            ]
        if "word" in self._granularities:
            words = [word for segment in done.segments for word in segment.words]
            answer["words"] = [{"word": w.text, "start": w.start, "end": w.end} for w in words]
        return answer


def _event(name: str, **data: str) -> bytes:
    kind = f"transcript.text.{name}"
    return sse(_json.encode({"type": kind, **data}), kind)
