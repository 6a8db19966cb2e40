"""Shows OpenAI's messages and deltas: content, reasoning, calls of tools and log-probabilities.

Reasoning is ``reasoning_content``, the field that clients of other servers read. Every delta of a
call says its id, type and name: strict clients lose a call whose later deltas leave them out.
"""

from typing import Any

from bitinglip.wire.text.result import call_info
from workers import protocol


def message(choice: protocol.TextChoice) -> dict[str, Any]:
    """Show a whole answer; one that only calls tools has no content, as OpenAI's."""
    shown: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text if choice.text or not choice.tool_calls else None,
        "refusal": None,
    }
    if choice.reasoning:
        shown["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        shown["tool_calls"] = [call_info(each) for each in choice.tool_calls]
    return shown


def delta(piece: protocol.TextDelta) -> dict[str, Any]:
    """Show a piece of an answer."""
    shown: dict[str, Any] = {}
    if piece.reasoning:
        shown["reasoning_content"] = piece.reasoning
    if piece.text or not (piece.reasoning or piece.tool_calls):
        shown["content"] = piece.text
    if piece.tool_calls:
        shown["tool_calls"] = [
            {"index": each.index, **call_info(each)} for each in piece.tool_calls
        ]
    return shown


def logprob_entry(sampled: protocol.TokenLogprob) -> dict[str, Any]:
    """Show a token's log-probability, and those of the likeliest tokens in its place."""
    top = [_logprob(token, logprob) for token, _, logprob in sampled.top]
    return {**_logprob(sampled.token, sampled.logprob), "top_logprobs": top}


def _logprob(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
