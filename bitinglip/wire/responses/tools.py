"""Declares a response's tools: the client's functions; a hosted search is left out, with a
header."""

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bitinglip.errors import InvalidRequest
from bitinglip.wire.openai_body import Label, OpenAIBody
from bitinglip.wire.responses.items import Kind, Shown, check_name, joined_name
from bitinglip.wire.text.tools import MAX_TOOLS, ToolName
from workers import protocol

#: hosted tools that agents offer in each request: a model that does not see one works without it
LEFT_OUT = frozenset({"web_search", "web_search_preview"})


class NamedFunction(OpenAIBody):
    """Declares a function of a namespace."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: Label = None
    allowed_callers: Label = None
    defer_loading: Label = None
    asynchronous: Annotated[Label, Field(alias="async")] = None


class ResponseTool(OpenAIBody):
    """Declares a function or a namespace; other tools are refused by their type, or left out."""

    type: Kind
    name: ToolName | None = None
    description: str | None = None
    tools: Annotated[list[NamedFunction] | None, Field(max_length=MAX_TOOLS)] = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: Label = None
    allowed_callers: Label = None
    defer_loading: Label = None
    asynchronous: Annotated[Label, Field(alias="async")] = None
    #: of the tools that are left out
    external_web_access: Label = None
    search_context_size: Label = None
    search_content_types: Label = None
    user_location: Label = None
    filters: Label = None

    @model_validator(mode="after")
    def _is_a_function(self) -> Self:
        if self.type in LEFT_OUT:
            return self
        if self.type == "namespace" and self.tools is None:
            raise PydanticCustomError("missing", "It has no 'tools'")
        if self.type not in ("function", "namespace"):
            raise PydanticCustomError(
                "unsupported", "is not supported as a tool of type '{kind}'", {"kind": self.type}
            )
        if self.name is None:
            raise PydanticCustomError("missing", "It has no 'name'")
        for each in self.tools or ():
            check_name(self.name, each.name)
        return self

    def functions(self) -> list["Offered"]:
        """Return the functions that it stands for."""
        if self.type == "function":
            return [Offered(self.name or "", self)]
        return [Offered(joined_name(self.name, each.name), each) for each in self.tools or ()]

    def shown(self) -> Shown | None:
        """Describe it; None if it is left out."""
        if self.type == "function":
            return _shown(self)
        if self.type != "namespace":
            return None
        functions = [_shown(each) for each in self.tools or ()]
        told = {"name": self.name, "description": self.description, "tools": functions}
        return {"type": "namespace", **told}


def _shown(function: "NamedFunction | ResponseTool") -> Shown:
    return {
        "type": "function",
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
        "strict": bool(function.strict),
    }


class Offered(NamedTuple):
    """Holds a function by the name that the model knows it by."""

    name: str
    function: NamedFunction | ResponseTool

    def to_job(self) -> protocol.Tool:
        return protocol.Tool(
            name=self.name,
            description=self.function.description,
            parameters=self.function.parameters,
            strict=bool(self.function.strict),
        )


class AllowedTool(OpenAIBody):
    type: Literal["function"]
    name: ToolName


class ResponseToolChoice(OpenAIBody):
    """Says which tools may be called, or which one must."""

    type: Kind
    name: ToolName | None = None
    mode: Literal["auto", "required", "none"] | None = None
    tools: Annotated[list[AllowedTool], Field(max_length=MAX_TOOLS)] | None = None

    @model_validator(mode="after")
    def _is_honoured(self) -> Self:
        needed = {"function": "name", "allowed_tools": "tools", "mode": "mode"}.get(self.type)
        if needed is None:
            raise PydanticCustomError(
                "unsupported", "is not supported as a choice of '{kind}'", {"kind": self.type}
            )
        if getattr(self, needed) is None:
            raise PydanticCustomError("missing", "It has no '{name}'", {"name": needed})
        return self


def _choice(value: Any) -> Any:
    return {"type": "mode", "mode": value} if isinstance(value, str) else value


Choice = Annotated[
    ResponseToolChoice | None,
    BeforeValidator(_choice, json_schema_input_type=str | ResponseToolChoice | None),
]
Tools = Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS, fail_fast=True)]


def chosen(
    choice: ResponseToolChoice | None, tools: list[ResponseTool]
) -> tuple[list[Offered], str | None]:
    """Return the functions that may be called, and what is chosen in the protocol's words.

    Raises InvalidRequest for tools that are allowed and not there.
    """
    functions = [each for tool in tools for each in tool.functions()]
    if choice is None:
        return functions, None
    if choice.type == "function":
        return functions, choice.name
    if choice.type == "allowed_tools":
        wanted = {each.name for each in choice.tools or ()}
        if not wanted <= {each.name for each in functions}:
            raise InvalidRequest(
                "'tool_choice' allows a tool that is not among 'tools'.", param="tool_choice.tools"
            )
        functions = [each for each in functions if each.name in wanted]
    return functions, choice.mode


def shown_choice(choice: ResponseToolChoice | None) -> Any:
    if choice is None:
        return "auto"
    if choice.type == "mode":
        return choice.mode
    if choice.type == "function":
        return {"type": "function", "name": choice.name}
    allowed = [{"type": "function", "name": each.name} for each in choice.tools or ()]
    return {"type": "allowed_tools", "mode": choice.mode or "auto", "tools": allowed}
