"""Says that a text does not fit its model's context, in the words by which agents know it.

Agents shorten their history when an error holds "maximum context length is" or "prompt is too
long"; a gateway and workers that said it differently would be understood half of the time.
"""

from typing import Any


def context_length_error(
    max_context: int, prompt_tokens: int, *, max_tokens: int | None, at_least: bool = False
) -> tuple[str, dict[str, Any]]:
    """Return the message and details of CONTEXT_LENGTH_EXCEEDED.

    max_tokens: as the client has asked for them, None if it has not, or if they may be cut.
    at_least: more of the prompt's tokens were not counted.
    """
    details = {"max_context": max_context, "prompt_tokens": prompt_tokens}
    limit = f"This model's maximum context length is {max_context} tokens"
    if max_tokens is not None:
        details["max_tokens"] = max_tokens
        if prompt_tokens < max_context:
            return (
                f"{limit}; the prompt has {prompt_tokens} and max_tokens is {max_tokens}.",
                details,
            )
    counted = f"{prompt_tokens} at least" if at_least else f"{prompt_tokens}"
    return f"{limit}; the prompt is too long: it has {counted}.", details
