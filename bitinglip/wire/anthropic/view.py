"""Anthropic's surface shows a job as a message: one object, or a stream of its blocks."""

from typing import Any

import msgspec
from pydantic_core import from_json

from bitinglip.errors import BitingLipError
from bitinglip.results.streams import sse
from bitinglip.scheduling.event_log import Event, EventLog
from bitinglip.wire.anthropic.errors import anthropic_error
from bitinglip.wire.job_view import JobView
from workers import protocol

_json = msgspec.json.Encoder()
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class _AnthropicView(JobView):
    """Shows errors in Anthropic's shape."""

    def error_event(self, error: BitingLipError) -> bytes:
        return sse(anthropic_error(error, self._request_id), "error")

    def _done(self) -> protocol.TextDone:
        done = self._event_log.final
        assert isinstance(done, protocol.TextDone)
        return done


class CountView(_AnthropicView):
    """Shows how many tokens a prompt has."""

    def body(self) -> bytes:
        return _json.encode({"input_tokens": self._done().prompt_tokens})


class MessagesView(_AnthropicView):
    """Shows blocks in the order in which they were made; each is closed before the next begins."""

    def __init__(self, event_log: EventLog, request_id: str, *, thinking: bool = True) -> None:
        """``thinking``: show what the model thought; else blocks of it are empty."""
        super().__init__(event_log, request_id)
        self._shows_thinking = thinking
        self._id = "msg_" + event_log.job.id.removeprefix("task-")
        self._prompt_tokens = 0
        self._begun = False
        self._blocks = 0  #: that were opened
        self._open: str | None = None  #: the type of the open one
        self._call = -1  #: the index of the tool call that the open one shows
        self._before = b""  #: the beginning of each delta of text in the open one

    def render(self, event: Event) -> bytes:
        match event:
            case protocol.TextDelta():
                return self._begin() + self._delta(event)
            case protocol.TextDone():
                return self._begin() + self._end(event)
            case protocol.Started(prompt_tokens=tokens):
                self._prompt_tokens = tokens
                return b""
            case _:
                return super().render(event)

    def body(self) -> bytes:
        done = self._done()
        choice = done.choices[0]
        content: list[dict[str, Any]] = []
        if choice.reasoning:
            shown = choice.reasoning if self._shows_thinking else ""
            content.append({"type": "thinking", "thinking": shown, "signature": self._id})
        if choice.text or not (choice.tool_calls or content):
            content.append({"type": "text", "text": choice.text, "citations": None})
        content += [
            {"type": "tool_use", "id": each.id, "name": each.name, "input": _input(each.arguments)}
            for each in choice.tool_calls
        ]
        return _json.encode({**self._message(), "content": content, **self._stop(done)})

    def _message(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._event_log.job.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _stop(self, done: protocol.TextDone) -> dict[str, Any]:
        """Describe the end: why it ended, and what is charged."""
        choice = done.choices[0]
        return {
            "stop_reason": self._stop_reason(done),
            "stop_sequence": choice.stop,
            "usage": {
                "input_tokens": done.prompt_tokens - done.cached_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": done.cached_tokens,
                "output_tokens": done.completion_tokens,
                "output_tokens_details": {"thinking_tokens": done.reasoning_tokens},
            },
        }

    def _stop_reason(self, done: protocol.TextDone) -> str:
        choice, work = done.choices[0], self._event_log.job.work
        assert isinstance(work, protocol.TextJob)
        if choice.stop is not None:
            return "stop_sequence"
        if choice.finish_reason == "length" and done.completion_tokens < work.sampling.max_tokens:
            return "model_context_window_exceeded"
        return _STOP_REASONS[choice.finish_reason]

    # ---- the stream ------------------------------------------------------------------------------

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        usage = {
            "input_tokens": self._prompt_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        }
        message = {**self._message(), "usage": usage}
        return _event("message_start", message=message) + _event("ping")

    def _delta(self, delta: protocol.TextDelta) -> bytes:
        shown = b""
        if delta.reasoning:
            shown += self._in("thinking", {"thinking": "", "signature": ""})
            if self._shows_thinking:
                shown += self._part({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.text:
            shown += self._in("text", {"text": ""})
            shown += self._before + _json.encode(delta.text) + b"}}\n\n"
        for call in delta.tool_calls:
            if self._open != "tool_use" or call.index != self._call:
                self._call = call.index
                start = {"id": call.id, "name": call.name, "input": {}}
                shown += self._new("tool_use", start)
            shown += self._part({"type": "input_json_delta", "partial_json": call.arguments})
        return shown

    def _in(self, kind: str, start: dict[str, Any]) -> bytes:
        """Open a block of this type, unless the open one is."""
        return b"" if self._open == kind else self._new(kind, start)

    def _new(self, kind: str, start: dict[str, Any]) -> bytes:
        closed = self._close()
        self._open, index = kind, self._blocks
        self._blocks += 1
        self._before = (
            b"event: content_block_delta\n"
            b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":'
        ) % index
        block = {"type": kind, **start}
        return closed + _event("content_block_start", index=index, content_block=block)

    def _part(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        signed = b""
        if self._open == "thinking":
            signed = self._part({"type": "signature_delta", "signature": self._id})
        self._open = None
        return signed + _event("content_block_stop", index=self._blocks - 1)

    def _end(self, done: protocol.TextDone) -> bytes:
        rest = b"" if self._blocks else self._new("text", {"text": ""})
        stop = self._stop(done)
        usage = stop.pop("usage")
        return (
            rest
            + self._close()
            + _event("message_delta", delta=stop, usage=usage)
            + _event("message_stop")
        )


def _event(name: str, **values: Any) -> bytes:
    return sse(_json.encode({"type": name, **values}), name)


def _input(arguments: str) -> dict[str, Any]:
    """Return the arguments of a call as an object, as far as it goes if it was cut off."""
    try:
        found = from_json(arguments or "{}", allow_partial=True)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
