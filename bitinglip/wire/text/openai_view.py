"""OpenAI's two text surfaces show a job as chunks with a prebuilt frame, or as one object."""

from abc import abstractmethod
from typing import Any

import msgspec

from bitinglip.results.streams import DONE, sse
from bitinglip.scheduling.event_log import Event, EventLog
from bitinglip.wire.openai_view import OpenAIView
from bitinglip.wire.text.openai_message import delta, logprob_entry, message
from workers import protocol

Logprobs = tuple[protocol.TokenLogprob, ...]

_json = msgspec.json.Encoder()
_MARK = "\0"  #: a text that no name of a model holds


class _TextView(OpenAIView):
    """Shows chunks, the last chunk, usage and ``[DONE]``; the surfaces differ in their choices."""

    prefix: str
    kind: str
    chunk_kind: str
    _begun = False
    _head = _tail = b""  #: of each chunk
    #: the text of a token of the first choice, without logprobs
    _before = _after = b""

    def __init__(
        self, event_log: EventLog, request_id: str, *, include_usage: bool = False
    ) -> None:
        super().__init__(event_log, request_id)
        job = event_log.job
        work = job.work
        assert isinstance(work, protocol.TextJob)
        self._include_usage = include_usage
        self._wants_logprobs = work.sampling.logprobs is not None
        self._frame = {
            "id": self.prefix + work.id.removeprefix("task-"),
            "created": int(job.created_at.timestamp()),
            "model": job.model,
        }
        self._choices = work.choices

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
                "choices": [self.body_choice(i, choice) for i, choice in enumerate(done.choices)],
                "usage": _usage(done),
            }
        )

    def first_choice(self, _index: int) -> dict[str, Any] | None:
        """Return what a choice begins with in a stream, before any text, if there is something."""
        return None

    @abstractmethod
    def token_choice(self, token: protocol.TextDelta) -> dict[str, Any]: ...

    @abstractmethod
    def last_choice(self, index: int, choice: protocol.TextChoice) -> dict[str, Any]: ...

    @abstractmethod
    def body_choice(self, index: int, choice: protocol.TextChoice) -> dict[str, Any]: ...

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        head = _json.encode({**self._frame, "object": self.chunk_kind})[:-1]
        tail = b',"usage":null}' if self._include_usage else b"}"
        self._head = b"data: " + head + b',"choices":['
        self._tail = b"]" + tail + b"\n\n"
        self._before, self._after = self._frame_of(0)
        self._other_frames: dict[int, tuple[bytes, bytes]] = {}  #: the same of other choices
        begun = b""
        for index in range(self._choices):
            choice = self.first_choice(index)
            begun += self._chunk(choice) if choice else b""
        return begun

    def _frame_of(self, index: int) -> tuple[bytes, bytes]:
        """Return what surrounds the text of a choice's tokens, as JSON, without logprobs."""
        token = protocol.TextDelta(id="", text=_MARK, index=0, choice=index)
        before, after = self._chunk(self.token_choice(token)).split(_json.encode(_MARK))
        return before, after

    def _token(self, token: protocol.TextDelta) -> bytes:
        """Show a token: chunks are the same but for their text, unless they hold more."""
        if self._wants_logprobs or token.reasoning or token.tool_calls:
            return self._chunk(self.token_choice(token))
        if not token.choice:
            return self._before + _json.encode(token.text) + self._after
        frame = self._other_frames.get(token.choice)
        if frame is None:
            frame = self._other_frames[token.choice] = self._frame_of(token.choice)
        return frame[0] + _json.encode(token.text) + frame[1]

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return self._head + _json.encode(choice) + self._tail

    def _end(self, done: protocol.TextDone) -> bytes:
        last = b"".join([self._chunk(self.last_choice(*each)) for each in enumerate(done.choices)])
        if self._include_usage:
            usage = {**self._frame, "object": self.chunk_kind, "choices": [], "usage": _usage(done)}
            last += sse(_json.encode(usage))
        return last + DONE


class ChatView(_TextView):
    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first_choice(self, index: int) -> dict[str, Any]:
        return self._delta(index, {"role": "assistant", "content": ""})

    def token_choice(self, token: protocol.TextDelta) -> dict[str, Any]:
        return self._delta(token.choice, delta(token), self._logprobs(token.logprobs))

    def last_choice(self, index: int, choice: protocol.TextChoice) -> dict[str, Any]:
        return self._delta(index, {}, finish_reason=choice.finish_reason)

    def body_choice(self, index: int, choice: protocol.TextChoice) -> dict[str, Any]:
        return {
            "index": index,
            "message": message(choice),
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }

    def _delta(
        self,
        index: int,
        shown: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": shown,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }

    def _logprobs(self, sampled: Logprobs) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        return {"content": [logprob_entry(each) for each in sampled], "refusal": None}


class CompletionView(_TextView):
    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(
        self, event_log: EventLog, request_id: str, *, include_usage: bool = False
    ) -> None:
        super().__init__(event_log, request_id, include_usage=include_usage)
        self._offsets: dict[int, int] = {}  #: of the next token, in each choice

    def token_choice(self, token: protocol.TextDelta) -> dict[str, Any]:
        return self._choice(token.choice, token.text, token.logprobs, None)

    def last_choice(self, index: int, choice: protocol.TextChoice) -> dict[str, Any]:
        return self._choice(index, "", (), choice.finish_reason)

    def body_choice(self, index: int, choice: protocol.TextChoice) -> dict[str, Any]:
        return self._choice(index, choice.text, choice.logprobs, choice.finish_reason)

    def _choice(
        self, index: int, text: str, sampled: Logprobs, reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, sampled),
            "finish_reason": reason,
        }

    def _logprobs(self, index: int, sampled: Logprobs) -> dict[str, Any] | None:
        if not self._wants_logprobs or not sampled:
            return None
        offset, offsets = self._offsets.get(index, 0), []
        for each in sampled:
            offsets.append(offset)
            offset += len(each.token)
        self._offsets[index] = offset
        return {
            "tokens": [each.token for each in sampled],
            "token_logprobs": [each.logprob for each in sampled],
            "top_logprobs": [_top_logprobs(each) for each in sampled],
            "text_offset": offsets,
        }


def _top_logprobs(sampled: protocol.TokenLogprob) -> dict[str, float] | None:
    """Return the best tokens and the sampled one, as OpenAI does; None for a prompt's first."""
    if sampled.logprob is None:
        return None
    return {**{token: logprob for token, _, logprob in sampled.top}, sampled.token: sampled.logprob}


def _usage(done: protocol.TextDone) -> dict[str, Any]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": done.reasoning_tokens},
    }
