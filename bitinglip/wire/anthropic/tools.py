"""Converts tools on Anthropic's surface: what a model may call, and which of them it must."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from bitinglip.wire.anthropic.blocks import BlockType
from bitinglip.wire.openai_body import Label, OpenAIBody
from bitinglip.wire.text.tools import MAX_TOOLS, ToolName
from workers import protocol


class AnthropicTool(OpenAIBody):
    """Describes a tool of the client's; those that Anthropic runs or defines itself are refused by
    name."""

    type: BlockType | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Label = None
    input_examples: Label = None
    allowed_callers: Label = None
    defer_loading: Label = None
    eager_input_streaming: Label = None

    @model_validator(mode="after")
    def _is_the_clients_own(self) -> Self:
        if self.type not in (None, "custom"):
            raise PydanticCustomError(
                "unsupported", "is not supported as a tool of type '{kind}'", {"kind": self.type}
            )
        if self.input_schema is None:
            raise PydanticCustomError("missing", "It has no 'input_schema'")
        return self

    def to_job(self) -> protocol.Tool:
        return protocol.Tool(
            name=self.name,
            description=self.description,
            parameters=self.input_schema,
            strict=bool(self.strict),
        )


class ToolChoice(OpenAIBody):
    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _names_its_tool(self) -> Self:
        if self.type == "tool" and self.name is None:
            raise PydanticCustomError("missing", "It has no 'name'")
        return self


Tools = Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS, fail_fast=True)]
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chosen(choice: ToolChoice | None) -> str | None:
    """Return what is chosen in the protocol's words."""
    if choice is None:
        return None
    return choice.name if choice.type == "tool" else _CHOICES[choice.type]
