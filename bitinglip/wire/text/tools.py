"""Converts the tools that a request brings, which of them the model may call, and earlier calls."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Protocol

import msgspec
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from bitinglip.errors import InvalidRequest
from bitinglip.wire.body import Body
from bitinglip.wire.openai_body import OpenAIBody
from workers import protocol

MAX_TOOLS = 1024
MAX_CALLS = 1024  #: of one turn
_packer = msgspec.msgpack.Encoder()
_CHOICES = ("auto", "none", "required")

#: also those that servers of tools make: with dots, slashes and colons
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,256}$")]
CallId = Annotated[str, Field(max_length=256)]


def _as_text(value: Any) -> Any:
    """Return arguments as JSON text: some clients send the object itself, or null."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


Arguments = Annotated[
    str, BeforeValidator(_as_text, json_schema_input_type=str | dict[str, Any] | None)
]


class Function(Body):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolEntry(Body):
    """Describes a function that the model may call."""

    type: Literal["function"] = "function"
    function: Function

    def to_job(self) -> protocol.Tool:
        return protocol.Tool(
            name=self.function.name,
            description=self.function.description,
            parameters=self.function.parameters,
            strict=bool(self.function.strict),
        )


class CalledFunction(Body):
    name: ToolName
    arguments: Arguments = ""


class CallEntry(Body):
    """Holds a call of an assistant's turn."""

    id: CallId = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    def to_job(self) -> protocol.ToolCall:
        return protocol.ToolCall(
            id=self.id, name=self.function.name, arguments=self.function.arguments
        )


class OpenAIFunction(Function, OpenAIBody):
    """Describes a function as OpenAI's clients send it, with fields of vendors beside it."""


class OpenAIToolEntry(ToolEntry, OpenAIBody):
    function: OpenAIFunction


class OpenAICalledFunction(CalledFunction, OpenAIBody):
    """Describes a call's function as OpenAI's clients send it back."""


class OpenAICallEntry(CallEntry, OpenAIBody):
    function: OpenAICalledFunction


class NamedFunction(Body):
    name: ToolName


class NamedTool(Body):
    """Names the one tool that is to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


def _choice(value: Any) -> Any:
    """Return a word, or the name in ``{"type": "function", "function": {"name": ...}}``."""
    if not isinstance(value, dict):
        return value
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else value.get("name")
    if value.get("type", "function") != "function" or not isinstance(name, str):
        raise PydanticCustomError("unsupported", "is not supported with this value")
    return name


ToolChoice = Annotated[
    str,
    BeforeValidator(
        _choice, json_schema_input_type=Literal["auto", "none", "required"] | NamedTool
    ),
]


def is_sendable(value: Any) -> bool:
    """Return whether a message to a worker can hold a value: its numbers have 64 bits."""
    try:
        _packer.encode(value)
    except OverflowError:
        return False
    return True


class AnyTool(Protocol):
    """Describes a tool as one of the surfaces takes it."""

    def to_job(self) -> protocol.Tool: ...


def tool_fields(
    tools: Iterable[AnyTool] | None, choice: str | None, *, parallel: bool | None
) -> dict[str, Any]:
    """Return the fields of a job about tools. Raises InvalidRequest.

    Without tools there is nothing to choose, and what says so is accepted.
    """
    if not tools and choice is None:
        return {}
    listed = tuple(each.to_job() for each in tools or ())
    names = {each.name for each in listed}
    if len(names) < len(listed):
        raise InvalidRequest("Two of the tools have the same name.", param="tools")
    if reserved := names.intersection(_CHOICES):
        raise InvalidRequest(f"No tool may be called '{reserved.pop()}'.", param="tools")
    if choice in (None, "auto", "none"):
        chosen = choice or "auto"
    elif (choice == "required" and listed) or choice in names:
        chosen = choice
    elif listed:
        raise InvalidRequest("'tool_choice' names no tool of 'tools'.", param="tool_choice")
    else:
        raise InvalidRequest("'tool_choice' needs 'tools'.", param="tool_choice")
    if not listed or chosen == "none":
        return {}
    if not is_sendable(listed):
        raise InvalidRequest("'tools' holds a number of more than 64 bits.", param="tools")
    return {"tools": listed, "tool_choice": chosen, "parallel_tool_calls": parallel is not False}
