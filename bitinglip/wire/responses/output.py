"""Shows what a model has made as the items of a response, whole or as they are streamed."""

from collections.abc import Iterable, Mapping
from typing import Any

from bitinglip import errors
from bitinglip.scheduling.event_log import EventLog, error_of
from bitinglip.wire.responses.items import (
    Shown,
    function_call,
    message_item,
    output_text,
    reasoning_item,
)
from bitinglip.wire.text.openai_message import logprob_entry
from workers import protocol

#: OpenAI's words for errors of a response; all others are the server's
_ERRORS = {
    "CONTEXT_LENGTH_EXCEEDED": "context_length_exceeded",
    "RATE_LIMIT_EXCEEDED": "rate_limit_exceeded",
    "QUOTA_EXCEEDED": "insufficient_quota",
    "INVALID_REQUEST": "invalid_prompt",
    "UNSUPPORTED_PARAMETER": "invalid_prompt",
    "CONTENT_FILTERED": "invalid_prompt",
    "PII_DETECTED": "invalid_prompt",
}


def items_of(choice: protocol.TextChoice, echo: Mapping[str, Any]) -> list[Shown]:
    """Describe an answer: reasoning, text and calls, in this order."""
    tail, namespaces = str(echo["id"]).removeprefix("resp_"), namespaces_of(echo)
    last = "incomplete" if choice.finish_reason == "length" else "completed"
    items: list[Shown] = []
    if choice.reasoning:
        items.append(thought_item(f"rs_{tail}_0", choice.reasoning, echo))
    if choice.text or not (choice.tool_calls or items):
        part = output_text(choice.text, shown_logprobs(choice.logprobs))
        items.append(message_item(f"msg_{tail}_{len(items)}", [part]))
    items += [
        function_call(f"fc_{tail}_{len(items) + number}", call, namespaces=namespaces)
        for number, call in enumerate(choice.tool_calls)
    ]
    items[-1]["status"] = last
    return items


def namespaces_of(echo: Mapping[str, Any]) -> frozenset[str]:
    """Return the namespaces of the tools that a response was offered."""
    tools = echo.get("tools", ())
    return frozenset(each["name"] for each in tools if each["type"] == "namespace")


def thought_item(item_id: str, text: str, echo: Mapping[str, Any]) -> Shown:
    """Describe the reasoning of a response.

    It is packed where the response is not stored; one that is stored is continued by its id.
    """
    packed = echo.get("store") is False
    return reasoning_item(item_id, text, packed=packed, summarised=is_summarised(echo))


def is_summarised(echo: Mapping[str, Any]) -> bool:
    """Return whether the client asked for a summary of the reasoning."""
    return bool((echo.get("reasoning") or {}).get("summary"))


def shown_logprobs(sampled: Iterable[protocol.TokenLogprob]) -> list[Shown]:
    return [logprob_entry(each) for each in sampled]


def ended(echo: Mapping[str, Any], event_log: EventLog) -> Shown:
    """Describe a response that has ended."""
    final, completed = event_log.final, event_log.completed_at
    response: Shown = {**echo, "completed_at": int(completed.timestamp()) if completed else None}
    if isinstance(final, protocol.TextDone):
        choice = final.choices[0]
        cut = choice.finish_reason == "length"
        return {
            **response,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": items_of(choice, echo),
            "usage": _usage(final),
        }
    if isinstance(final, protocol.Failed):
        return failed(response, error_of(final))
    return {**response, "status": "cancelled"}


def failed(response: Mapping[str, Any], error: errors.BitingLipError) -> Shown:
    """Describe a response that an error has ended."""
    code = _ERRORS.get(errors.answer(error).code, "server_error")
    told = {"code": code, "message": error.message, "param": own_param(error.param)}
    return {**response, "status": "failed", "error": told}


def own_param(param: str | None) -> str | None:
    """Return what a field of the job is called on this surface, where messages are items."""
    return "input" if param is not None and param.startswith("messages") else param


def _usage(done: protocol.TextDone) -> Shown:
    return {
        "input_tokens": done.prompt_tokens,
        "input_tokens_details": {"cached_tokens": done.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": done.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": done.reasoning_tokens},
        "total_tokens": done.prompt_tokens + done.completion_tokens,
    }
