"""OpenAI's surface shows a transcription as text, subtitles, JSON or events."""

import math
from typing import Any

import msgspec

from bitinglip.results.streams import sse
from bitinglip.scheduling.event_log import Event, EventLog
from bitinglip.wire.openai_view import OpenAIView
from bitinglip.wire.transcription.openai import Form
from bitinglip.wire.transcription.result import segment_info
from bitinglip.wire.transcription.subtitles import srt, vtt
from workers import protocol

_json = msgspec.json.Encoder()


class TranscriptionView(OpenAIView):
    """Shows a transcription in the format that the request names."""

    def __init__(
        self, event_log: EventLog, request_id: str, *, form: Form, granularities: tuple[str, ...]
    ) -> None:
        super().__init__(event_log, request_id)
        assert isinstance(event_log.job.work, protocol.TranscriptionJob)
        self._work = event_log.job.work
        self._form = form
        self._granularities = granularities

    @property
    def media_type(self) -> str:
        json = self._form in ("json", "verbose_json")
        return "application/json" if json else "text/plain; charset=utf-8"

    def render(self, event: Event) -> bytes:
        match event:
            case protocol.SegmentDelta(segment=segment):
                return _event("delta", delta=segment.text)
            case protocol.TranscriptionDone(text=text):
                return _event("done", text=text, **self._logprobs(event))
            case _:
                return super().render(event)

    def body(self) -> bytes:
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
        usage = _usage(done)
        return _json.encode({"text": done.text, **self._logprobs(done), "usage": usage})

    def _logprobs(self, done: protocol.TranscriptionDone) -> dict[str, Any]:
        """Describe each token, if the request asked for that."""
        if not self._work.logprobs:
            return {}
        found = [
            {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": [*token]}
            for segment in done.segments
            for token, logprob in segment.logprobs
        ]
        return {"logprobs": found}

    def _verbose(self, done: protocol.TranscriptionDone) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "task": self._work.task,
            "language": done.language_name,
            "duration": done.duration,
            "text": done.text,
            "usage": _usage(done),
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


def _usage(done: protocol.TranscriptionDone) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(done.duration)}


def _event(name: str, **data: Any) -> bytes:
    kind = f"transcript.text.{name}"
    return sse(_json.encode({"type": kind, **data}), kind)
