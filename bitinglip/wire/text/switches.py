"""Switches of chat templates: how much a model reasons, and whatever else its template asks for."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

#: What templates call the switch for reasoning.
_THINKING = ("enable_thinking", "thinking")
#: What the conversation itself is to a template; no request may put something else in its place.
_OWN = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})


def _no_own(value: dict[str, Any]) -> dict[str, Any]:
    if wrong := sorted(_OWN.intersection(value)):
        raise PydanticCustomError("value", f"{wrong[0]} is a field of the request")
    return value


TemplateVariables = Annotated[dict[str, Any], Field(max_length=64), AfterValidator(_no_own)]


def template_variables(
    given: dict[str, Any] | None, *, enable_thinking: bool | None, reasoning_effort: str | None
) -> dict[str, Any]:
    """Return the variables of a job's chat template; what was given by name there comes first."""
    if given is None and enable_thinking is None and reasoning_effort is None:
        return {}
    switches: dict[str, Any] = {}
    thinks = enable_thinking
    if reasoning_effort is not None:
        switches["reasoning_effort"] = reasoning_effort
        thinks = reasoning_effort != "none" if thinks is None else thinks
    if thinks is not None:
        switches.update(dict.fromkeys(_THINKING, thinks))
    return {**switches, **(given or {})}
