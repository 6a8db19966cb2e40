"""OpenAI's two text surfaces show a job as chunks with a prebuilt frame, or as one object."""

from abc import abstractmethod
from typing import Any

import msgspec

from bitinglip.results.streams import DONE, sse
from bitinglip.scheduling.event_log import Event, EventLog
from bitinglip.wire.openai_view import OpenAIView
from bitinglip.wire.text.openai_message import delta, message
from workers import protocol

Logprobs = tuple[protocol.TokenLogprob, ...]

_json = msgspec.json.Encoder()
_MARK = "\0"  #: a text that no name of a model holds


class _TextView(OpenAIView):
    """Shows chunks, the last chunk, usage and ``[DONE]``; the surfaces differ in their choices."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(
        self, event_log: EventLog, request_id: str, *, include_usage: bool = False
    ) -> None:
        super().__init__(event_log, request_id)
        job = event_log.job
        assert isinstance(job.work, protocol.TextJob)
        self._include_usage = include_usage
        self._wants_logprobs = job.work.sampling.logprobs is not None
        self._frame = {
            "id": self.prefix + job.id.removeprefix("task-"),
            "created": int(job.created_at.timestamp()),
            "model": job.model,
        }
        self._begun = False
        self._head = self._tail = b""  #: of each chunk
        self._before = self._after = b""  #: the text of a token without logprobs

    def render(self, event: Event) -> bytes:
        match event:
            case protocol.TextDelta():
                return self._begin() + self._token(event)
            case protocol.TextDone():
                return self._begin() + self._end(event)
            case _:
                return super().render(event)

    def body(self) -> bytes:
        done = self._event_log.final
        assert isinstance(done, protocol.TextDone)
        return _json.encode(
            {
                **self._frame,
                "object": self.kind,
                "choices": [self.body_choice(done)],
                "usage": _usage(done),
            }
        )

    def first_choice(self) -> dict[str, Any] | None:
        """Return the choice that a stream begins with, before any text, if there is one."""
        return None

    @abstractmethod
    def token_choice(self, token: protocol.TextDelta) -> dict[str, Any]: ...

    @abstractmethod
    def last_choice(self, done: protocol.TextDone) -> dict[str, Any]: ...

    @abstractmethod
    def body_choice(self, done: protocol.TextDone) -> dict[str, Any]: ...

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        head = _json.encode({**self._frame, "object": self.chunk_kind})[:-1]
        tail = b',"usage":null}' if self._include_usage else b"}"
        self._head = b"data: " + head + b',"choices":['
        self._tail = b"]" + tail + b"\n\n"
        model = self._chunk(self.token_choice(protocol.TextDelta(id="", text=_MARK, index=0)))
        self._before, self._after = model.split(_json.encode(_MARK))
        choice = self.first_choice()
        return self._chunk(choice) if choice else b""

    def _token(self, token: protocol.TextDelta) -> bytes:
        """Show a token: chunks are the same but for their text, unless they hold more."""
        if self._wants_logprobs or token.reasoning or token.tool_calls:
            return self._chunk(self.token_choice(token))
        return self._before + _json.encode(token.text) + self._after

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return self._head + _json.encode(choice) + self._tail

    def _end(self, done: protocol.TextDone) -> bytes:
        last = self._chunk(self.last_choice(done))
        if self._include_usage:
            usage = {**self._frame, "object": self.chunk_kind, "choices": [], "usage": _usage(done)}
            last += sse(_json.encode(usage))
        return last + DONE


class ChatView(_TextView):
    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first_choice(self) -> dict[str, Any]:
        return self._delta({"role": "assistant", "content": ""})

    def token_choice(self, token: protocol.TextDelta) -> dict[str, Any]:
        return self._delta(delta(token), self._logprobs(token.logprobs))

    def last_choice(self, done: protocol.TextDone) -> dict[str, Any]:
        return self._delta({}, finish_reason=done.choices[0].finish_reason)

    def body_choice(self, done: protocol.TextDone) -> dict[str, Any]:
        return {
            "index": 0,
            "message": message(done.choices[0]),
            "logprobs": self._logprobs(done.choices[0].logprobs),
            "finish_reason": done.choices[0].finish_reason,
        }

    def _delta(
        self,
        shown: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        return {
            "index": 0,
            "delta": shown,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }

    def _logprobs(self, sampled: Logprobs) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        return {"content": [_chat_logprob(each) for each in sampled], "refusal": None}


class CompletionView(_TextView):
    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(
        self, event_log: EventLog, request_id: str, *, include_usage: bool = False
    ) -> None:
        super().__init__(event_log, request_id, include_usage=include_usage)
        self._offset = 0

    def token_choice(self, token: protocol.TextDelta) -> dict[str, Any]:
        return self._choice(token.text, token.logprobs, None)

    def last_choice(self, done: protocol.TextDone) -> dict[str, Any]:
        return self._choice("", (), done.choices[0].finish_reason)

    def body_choice(self, done: protocol.TextDone) -> dict[str, Any]:
        return self._choice(done.text, done.choices[0].logprobs, done.choices[0].finish_reason)

    def _choice(self, text: str, sampled: Logprobs, reason: str | None) -> dict[str, Any]:
        return {
            "index": 0,
            "text": text,
            "logprobs": self._logprobs(sampled),
            "finish_reason": reason,
        }

    def _logprobs(self, sampled: Logprobs) -> dict[str, Any] | None:
        if not self._wants_logprobs or not sampled:
            return None
        offsets = []
        for each in sampled:
            offsets.append(self._offset)
            self._offset += len(each.token)
        return {
            "tokens": [each.token for each in sampled],
            "token_logprobs": [each.logprob for each in sampled],
            "top_logprobs": [{token: p for token, _, p in each.top} for each in sampled],
            "text_offset": offsets,
        }


def _chat_logprob(sampled: protocol.TokenLogprob) -> dict[str, Any]:
    top = [_one_logprob(token, logprob) for token, _, logprob in sampled.top]
    return {**_one_logprob(sampled.token, sampled.logprob), "top_logprobs": top}


def _one_logprob(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _usage(done: protocol.TextDone) -> dict[str, Any]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": done.reasoning_tokens},
    }
