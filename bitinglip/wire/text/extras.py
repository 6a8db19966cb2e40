"""Makes the fields of a job that few requests ask for: tools, forms, switches, and how prompts
end."""

from collections.abc import Sequence
from typing import Any, Protocol

from bitinglip.wire.text.forms import NativeForms, OpenAIForms
from bitinglip.wire.text.prompt_end import PromptEndFields
from bitinglip.wire.text.switches import Switches
from bitinglip.wire.text.tools import AnyTool, tool_fields
from workers import protocol

_ASKED_BY = frozenset(
    {
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        *Switches.model_fields,
        *NativeForms.model_fields,
        *OpenAIForms.model_fields,
        *PromptEndFields.model_fields,
    }
)


class _Body(Protocol):
    @property
    def model_fields_set(self) -> set[str]: ...
    @property
    def tools(self) -> Sequence[AnyTool] | None: ...
    @property
    def tool_choice(self) -> str | None: ...
    @property
    def parallel_tool_calls(self) -> bool | None: ...

    def template_variables(self) -> dict[str, Any]: ...
    def asked_grammar(self) -> protocol.Grammar | None: ...
    def prompt_end(self, messages: Sequence[protocol.ChatMessage] | None) -> dict[str, Any]: ...


def extra_fields(body: _Body, messages: Sequence[protocol.ChatMessage] | None) -> dict[str, Any]:
    """Return these fields of a job. Raises InvalidRequest."""
    if body.model_fields_set.isdisjoint(_ASKED_BY):
        return {}
    return {
        "template_kwargs": body.template_variables(),
        "grammar": body.asked_grammar(),
        **tool_fields(body.tools, body.tool_choice, parallel=body.parallel_tool_calls),
        **body.prompt_end(messages),
    }
