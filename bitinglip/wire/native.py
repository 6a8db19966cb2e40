"""The native API's text request, and how its events and answers look."""

from typing import Annotated, Any

import msgspec
from pydantic import Field

from bitinglip.errors import InvalidRequest
from bitinglip.results.streams import sse
from bitinglip.scheduling.inbox import Event, Inbox, Loading, Queued, error_of
from bitinglip.scheduling.job import TextJob
from bitinglip.scheduling.standing import Priority, Standing
from bitinglip.settings import Model
from bitinglip.wire.failure import error_body
from bitinglip.wire.fields import (
    ApiDefaults,
    Logprobs,
    Messages,
    ModelName,
    Only,
    SamplingFields,
    Stop,
)
from bitinglip.wire.task import cancelled, inference_response, logprob_info
from workers import protocol

DEFAULTS = ApiDefaults(max_tokens=512, temperature=0.7, top_p=0.9)
MAX_TIMEOUT = 86_400
_json = msgspec.json.Encoder()


class TextGenerationRequest(SamplingFields):
    """Text to generate: from a ``prompt``, or from ``messages`` through the model's template."""

    model: ModelName
    prompt: str | None = None
    messages: Messages | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=16)] | None = None
    logprobs: Logprobs | None = None
    response_format: Annotated[Any, Only((None, {"type": "text"}))] = None
    timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT)] | None = None
    stream: bool = False
    priority: Priority = "normal"
    asynchronous: Annotated[bool, Field(alias="async")] = False

    def to_job(self, own: Model, *, key_id: str, timeout: float, standing: Standing) -> TextJob:
        """The work that this request asks for; ``timeout`` is the server's, unless it has one."""
        self._check_one_input()
        return TextJob(
            model=self.model,
            key_id=key_id,
            prompt=self.prompt,
            messages=tuple(m.to_job() for m in self.messages) if self.messages else None,
            sampling=self.sampling(
                own.sampling,
                DEFAULTS,
                max_tokens=self.max_tokens,
                stop=self.stop_sequences,
                logprobs=self.logprobs,
            ),
            clip_max_tokens=self.max_tokens is None,
            stream=self.stream,
            timeout=self.timeout or timeout,
            standing=standing,
        )

    def _check_one_input(self) -> None:
        if self.prompt is not None and self.messages is not None:
            raise InvalidRequest("Send either 'prompt' or 'messages', not both.", param="messages")
        if self.prompt is None and self.messages is None:
            raise InvalidRequest("'prompt' is missing.", param="prompt")


class NativeView:
    """A text job as the native API shows it: named events, InferenceResponse at the end."""

    begins_at_once = True

    def __init__(self, inbox: Inbox, request_id: str) -> None:
        self._inbox = inbox
        self._job = inbox.job
        self._request_id = request_id

    def event(self, event: Event) -> tuple[str, bytes]:
        """The event's name, and its data as JSON: the same in every kind of stream."""
        match event:
            case protocol.Token():
                return "token", _token(event)
            case Queued(position=position, eta=eta):
                return "queued", _json.encode({"position": position, "eta": eta})
            case Loading(progress=progress):
                return "loading", _json.encode({"progress": progress})
            case protocol.Started():
                data = {"task_id": self._job.id, "worker_id": self._inbox.worker_id}
                return "started", _json.encode(data)
            case protocol.Done():
                return "completed", self.whole(event)
            case protocol.Failed():
                return "failed", error_body(error_of(event), self._request_id)
            case protocol.Cancelled():
                return "cancelled", cancelled(self._job.id)

    def render(self, event: Event) -> bytes:
        name, data = self.event(event)
        return sse(data, name)

    def whole(self, _done: protocol.Done) -> bytes:
        """InferenceResponse as JSON."""
        return _json.encode(inference_response(self._inbox))


def _token(token: protocol.Token) -> bytes:
    data: dict[str, Any] = {"text": token.text, "index": token.index}
    if token.logprobs:
        data["logprobs"] = [logprob_info(each) for each in token.logprobs]
    return _json.encode(data)
