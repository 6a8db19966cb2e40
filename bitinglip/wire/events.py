"""Renders the events and results of all kinds of jobs for the native API."""

from base64 import b64encode
from typing import Any

import msgspec

from bitinglip.errors import BitingLipError
from bitinglip.results.files import Files, outputs_of
from bitinglip.results.streams import sse
from bitinglip.scheduling.event_log import Event, EventLog, Loading, Queued, error_of
from bitinglip.wire.embedding.result import encoded_result
from bitinglip.wire.errors import error_body
from bitinglip.wire.response import cancelled, inference_response
from bitinglip.wire.text.result import call_info, logprob_info
from workers import protocol

_json = msgspec.json.Encoder()


class NativeView:
    """Shows a job as named events with an InferenceResponse at the end."""

    starts_immediately = True
    stream_media_type = None
    media_type = "application/json"

    def __init__(
        self, event_log: EventLog, request_id: str, files: Files, most_inline: int | None = None
    ) -> None:
        """``most_inline``: bytes of files in an answer, of which more are shown as links."""
        self._event_log = event_log
        self._job = event_log.job
        self._request_id = request_id
        self._files = files
        self._most_inline = most_inline
        work = self._job.work
        self._tells_choice = isinstance(work, protocol.TextJob) and work.choices > 1
        self._answer: dict[str, Any] | None = None
        self._error: BitingLipError | None = None

    async def prepare_final(self) -> None:
        """Register the job's files (output=url), or read them into the answer; encode vectors."""
        final = self._event_log.final
        if isinstance(final, protocol.EmbeddingDone):
            assert isinstance(self._job.work, protocol.EmbeddingJob)
            result = await encoded_result(self._job.work, final)
            self._answer = inference_response(self._event_log, result)
            return
        sizes = [each.bytes for each in outputs_of(self._event_log)]
        if not sizes:
            return
        most = self._most_inline
        try:
            if self._job.output == "url" or (most is not None and sum(sizes) > most):
                await self._files.register(self._event_log)
            answer = inference_response(self._event_log)
            self._answer = await self._files.inline_bytes(answer, most)
        except BitingLipError as error:
            self._error = error

    def event(self, event: Event) -> tuple[str, bytes]:
        """Return the event's name and its data as JSON, the same for SSE and WebSocket."""
        match event:
            case protocol.TextDelta():
                return "token", _token(event, self._tells_choice)
            case Queued(position=position, eta=eta):
                return "queued", _json.encode({"position": position, "eta": eta})
            case Loading(progress=progress):
                return "loading", _json.encode({"progress": progress})
            case protocol.Started():
                data = {"task_id": self._job.id, "worker_id": self._event_log.worker_id}
                return "started", _json.encode(data)
            case protocol.Progress():
                return "progress", _progress(event)
            case protocol.AudioDelta():
                return "audio", _sound(event)
            case protocol.SegmentDelta():
                return "segment", _segment(event)
            case _:
                return self._end(event)

    def _end(self, final: protocol.Final) -> tuple[str, bytes]:
        match final:
            case protocol.Failed():
                return "failed", error_body(error_of(final), self._request_id)
            case protocol.Cancelled():
                return "cancelled", cancelled(self._job.id)
        if self._error is not None:
            return "failed", error_body(self._error, self._request_id)
        return "completed", self.body()

    def render(self, event: Event) -> bytes:
        name, data = self.event(event)
        return sse(data, name)

    def body(self) -> bytes:
        """Return the InferenceResponse as JSON. Raises the error of its files."""
        if self._error is not None:
            raise self._error
        return _json.encode(self._answer or inference_response(self._event_log))


def _progress(progress: protocol.Progress) -> bytes:
    data: dict[str, Any] = {"step": progress.step, "steps": progress.steps}
    if progress.preview:
        data["preview"] = b64encode(progress.preview).decode()
    return _json.encode(data)


def _sound(sound: protocol.AudioDelta) -> bytes:
    data = {
        "b64": b64encode(sound.samples).decode(),
        "index": sound.index,
        "sample_rate": sound.sample_rate,
        "encoding": "pcm_s16le",
    }
    return _json.encode(data)


def _segment(heard: protocol.SegmentDelta) -> bytes:
    segment = heard.segment
    data: dict[str, Any] = {
        "text": segment.text,
        "start": segment.start,
        "end": segment.end,
        "index": heard.index,
    }
    if segment.words:
        data["words"] = [
            {"text": word.text, "start": word.start, "end": word.end} for word in segment.words
        ]
    return _json.encode(data)


def _token(token: protocol.TextDelta, tells_choice: bool) -> bytes:
    data: dict[str, Any] = {"text": token.text, "index": token.index}
    if tells_choice:
        data["choice"] = token.choice
    if token.reasoning:
        data["reasoning"] = token.reasoning
    if token.tool_calls:
        data["tool_calls"] = [{"index": each.index, **call_info(each)} for each in token.tool_calls]
    if token.logprobs:
        data["logprobs"] = [logprob_info(each) for each in token.logprobs]
    return _json.encode(data)
