"""Messages on Anthropic's surface hold blocks: texts, thinking, calls of tools, results."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bitinglip.wire.openai_body import Label, OpenAIBody
from bitinglip.wire.text.fields import MAX_MESSAGES, MAX_PARTS, parts
from workers import protocol

_json = msgspec.json.Encoder()

#: by type: the fields that a block must have
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
    "tool_use": ("id", "name"),
    "tool_result": ("tool_use_id",),
}
BlockType = Annotated[str, Field(max_length=64, pattern="^[a-z0-9_]+$")]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class TextBlock(OpenAIBody):
    """Holds a text; a block of any other type is refused by the name of its type."""

    type: BlockType
    text: str | None = None
    citations: Label = None
    cache_control: Label = None

    @model_validator(mode="after")
    def _is_text(self) -> Self:
        check_block(self, frozenset({"text"}))
        return self


def check_block(block: "TextBlock | Block", types: Iterable[str]) -> None:
    """Raise PydanticCustomError for a type that is not among these, or a field that is missing."""
    kind = block.type
    if kind not in types:
        raise PydanticCustomError(
            "unsupported", "is not supported as a block of type '{kind}'", {"kind": kind}
        )
    for name in _NEEDED[kind]:
        if getattr(block, name) is None:
            raise PydanticCustomError("missing", "It has no '{name}'", {"name": name})


#: a string is one text
Texts = Annotated[
    list[TextBlock],
    Field(max_length=MAX_PARTS, fail_fast=True),
    BeforeValidator(parts, json_schema_input_type=str | list[TextBlock] | None),
]


class Block(OpenAIBody):
    """Holds a part of a message. What only Anthropic can read of it (signatures) has no effect."""

    type: BlockType
    text: str | None = None
    thinking: str | None = None
    signature: Label = None
    data: Label = None
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    content: Texts = Field(default_factory=list)
    is_error: Label = None
    caller: Label = None
    toolset_name: Label = None
    citations: Label = None
    cache_control: Label = None

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        check_block(self, _NEEDED)
        return self


class AnthropicMessage(OpenAIBody):
    """Holds a turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block],
        Field(max_length=MAX_PARTS, fail_fast=True),
        BeforeValidator(parts, json_schema_input_type=str | list[Block]),
    ]

    @model_validator(mode="after")
    def _blocks_fit_the_role(self) -> Self:
        foreign = {"assistant": ("tool_result",), "user": _OF_ASSISTANTS, "system": _NOT_TEXT}
        for block in self.content:
            if block.type in foreign[self.role]:
                raise PydanticCustomError(
                    "role",
                    "A message of the role '{role}' holds no block of type '{kind}'",
                    {"role": self.role, "kind": block.type},
                )
        return self


_OF_ASSISTANTS = ("thinking", "redacted_thinking", "tool_use")
_NOT_TEXT = (*_OF_ASSISTANTS, "tool_result")

AnthropicMessages = Annotated[
    list[AnthropicMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
]


def chat_messages(
    system: Iterable[TextBlock], messages: Iterable[AnthropicMessage]
) -> tuple[protocol.ChatMessage, ...]:
    """Make the messages to a worker: the system's texts come first, results are tools' turns.

    User turns that follow one another are one, as Anthropic's API has it. What the system says
    later is part of them: many templates take a system's turn in the beginning only.
    """
    told = [each.text for each in system if each.text]
    turns = [protocol.ChatMessage("system", "\n\n".join(told))] if told else []
    said: list[str] = []  # by the user, since the last other turn: joined once, however many
    for turn in (turn for message in messages for turn in _turns(message)):
        if turn.role == "user" or (turn.role == "system" and (turns or said)):
            said.append(turn.content)
            continue
        turns += _user_turn(said)
        said = []
        turns.append(turn)
    return (*turns, *_user_turn(said))


def _user_turn(said: list[str]) -> list[protocol.ChatMessage]:
    return [protocol.ChatMessage("user", "\n\n".join(said))] if said else []


def _turns(message: AnthropicMessage) -> Iterator[protocol.ChatMessage]:
    if message.role == "assistant":
        yield _assistant(message.content)
        return
    texts: list[str] = []
    for block in message.content:
        if block.type == "tool_result":
            yield from _spoken(message.role, texts)
            texts = []
            yield protocol.ChatMessage(
                "tool", text_of(block.content), tool_call_id=block.tool_use_id
            )
        else:
            texts.append(block.text or "")
    if texts or not message.content:
        yield protocol.ChatMessage(message.role, "".join(texts))


def _spoken(role: str, texts: list[str]) -> Iterator[protocol.ChatMessage]:
    if texts:
        yield protocol.ChatMessage(role, "".join(texts))


def _assistant(blocks: Iterable[Block]) -> protocol.ChatMessage:
    texts, thoughts, calls = [], [], []
    for block in blocks:
        if block.type == "tool_use":
            calls.append(
                protocol.ToolCall(
                    id=block.id or "",
                    name=block.name or "",
                    arguments=_json.encode(block.input or {}).decode(),
                )
            )
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        else:
            texts.append(block.text or "")
    return protocol.ChatMessage(
        "assistant",
        "".join(texts),
        tool_calls=tuple(calls),
        reasoning="\n".join(thoughts) or None,
    )


def text_of(blocks: Iterable[TextBlock]) -> str:
    return "\n".join(each.text or "" for each in blocks)
