"""These functions describe text and its usage in an InferenceResponse."""

from typing import Any

from workers import protocol


def logprob_info(sampled: protocol.TokenLogprob) -> dict[str, Any]:
    return {
        "token": sampled.token,
        "id": sampled.id,
        "logprob": sampled.logprob,
        "top": [{"token": t, "id": i, "logprob": p} for t, i, p in sampled.top],
    }


def call_info(call: protocol.ToolCall | protocol.ToolCallDelta) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def text_result(work: protocol.TextJob, done: protocol.TextDone) -> dict[str, Any]:
    """Describe the text, with log-probabilities if they were asked for.

    Of several choices the first is described as one is, and then all are.
    """
    first, *others = (_choice(work, each) for each in done.choices)
    if not others:
        return first
    choices = [{"index": index, **each} for index, each in enumerate((first, *others))]
    return {**first, "choices": choices}


def _choice(work: protocol.TextJob, choice: protocol.TextChoice) -> dict[str, Any]:
    described: dict[str, Any] = {"text": choice.text, "finish_reason": choice.finish_reason}
    if choice.reasoning:
        described["reasoning"] = choice.reasoning
    if choice.tool_calls:
        described["tool_calls"] = [call_info(each) for each in choice.tool_calls]
    if work.sampling.logprobs is not None:
        described["logprobs"] = [logprob_info(each) for each in choice.logprobs]
    return described


def text_usage(final: protocol.TextDone | protocol.Cancelled) -> dict[str, Any]:
    """Count what is charged: tokens."""
    usage = {
        "prompt_tokens": final.prompt_tokens,
        "completion_tokens": final.completion_tokens,
        "total_tokens": final.prompt_tokens + final.completion_tokens,
    }
    if isinstance(final, protocol.TextDone) and final.reasoning_tokens:
        usage["reasoning_tokens"] = final.reasoning_tokens
    return usage
