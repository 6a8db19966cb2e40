"""Declares switches of chat templates: how much a model reasons, and others of its template."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from bitinglip.wire.body import Body
from bitinglip.wire.text.tools import is_sendable

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

#: What templates call the switch for reasoning.
_THINKING = ("enable_thinking", "thinking")
#: By the fields of a request, the variables of a template by which it knows them.
_KNOWN_BY = {
    "enable_thinking": frozenset(_THINKING),
    "reasoning_effort": frozenset({"reasoning_effort", *_THINKING}),
    "verbosity": frozenset({"verbosity"}),
}
#: What the conversation itself is to a template; no request may put something else in its place.
_OWN = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})


def _no_own(value: dict[str, Any]) -> dict[str, Any]:
    if wrong := sorted(_OWN.intersection(value)):
        raise PydanticCustomError("value", f"{wrong[0]} is a field of the request")
    if not is_sendable(value):
        raise PydanticCustomError("value", "It holds a number of more than 64 bits")
    return value


TemplateVariables = Annotated[dict[str, Any], Field(max_length=64), AfterValidator(_no_own)]


class Switches(Body):
    """Holds the fields that become variables of a chat template."""

    enable_thinking: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    chat_template_kwargs: TemplateVariables | None = None

    def template_variables(self) -> dict[str, Any]:
        """Return the variables; what was given by name in chat_template_kwargs comes first."""
        if self.model_fields_set.isdisjoint(_SWITCHES):
            return {}
        switches: dict[str, Any] = {}
        thinks = self.enable_thinking
        if self.reasoning_effort is not None:
            switches["reasoning_effort"] = self.reasoning_effort
            thinks = self.reasoning_effort != "none" if thinks is None else thinks
        if self.verbosity is not None:
            switches["verbosity"] = self.verbosity
        if thinks is not None:
            switches.update(dict.fromkeys(_THINKING, thinks))
        return {**switches, **self.chat_template_kwargs} if self.chat_template_kwargs else switches

    def unknown_switches(self, known: Collection[str] | None) -> list[str]:
        """Return the fields that are set and that a template which knows these does not know.

        ``known`` is None where that was not looked up: then all are given to it.
        """
        if known is None or self.model_fields_set.isdisjoint(_SWITCHES):
            return []
        return [
            name
            for name, variables in _KNOWN_BY.items()
            if getattr(self, name) is not None and variables.isdisjoint(known)
        ]


_SWITCHES = frozenset(Switches.model_fields)
