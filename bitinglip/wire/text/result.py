"""The result and the usage of text in an InferenceResponse."""

from typing import Any

from workers import protocol


def logprob_info(sampled: protocol.TokenLogprob) -> dict[str, Any]:
    return {
        "token": sampled.token,
        "id": sampled.id,
        "logprob": sampled.logprob,
        "top": [{"token": t, "id": i, "logprob": p} for t, i, p in sampled.top],
    }


def text_result(work: protocol.TextJob, done: protocol.TextDone) -> dict[str, Any]:
    """``result`` of an InferenceResponse."""
    result: dict[str, Any] = {"text": done.text, "finish_reason": done.finish_reason}
    if work.sampling.logprobs is not None:
        result["logprobs"] = [logprob_info(each) for each in done.logprobs]
    return result


def text_usage(final: protocol.TextDone | protocol.Cancelled) -> dict[str, Any]:
    """What is charged: tokens."""
    return {
        "prompt_tokens": final.prompt_tokens,
        "completion_tokens": final.completion_tokens,
        "total_tokens": final.prompt_tokens + final.completion_tokens,
    }
