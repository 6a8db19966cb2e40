"""OpenAI's messages and deltas: content, reasoning and calls of tools.

Reasoning is ``reasoning_content``, the field that clients of other servers read. Every delta of a
call says its id, type and name: strict clients lose a call whose later deltas leave them out.
"""

from typing import Any

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
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in choice.tool_calls
        ]
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
            {
                "index": call.index,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in piece.tool_calls
        ]
    return shown
