"""Messages on Anthropic's surface hold blocks: texts, thinking, calls of tools, results."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bitinglip.wire.openai_body import Label, OpenAIBody
from bitinglip.wire.text.fields import MAX_MESSAGES, MAX_PARTS, parts
from bitinglip.wire.text.pictures import check_part, one_turn, said
from workers import protocol

_json = msgspec.json.Encoder()

#: by type: the fields that a block must have
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "image": ("source",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
    "tool_use": ("id", "name"),
    "tool_result": ("tool_use_id",),
}
BlockType = Annotated[str, Field(max_length=64, pattern="^[a-z0-9_]+$")]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class Source(OpenAIBody):
    """Holds what a picture is made from: base64; any other block that has one is refused."""

    type: BlockType
    media_type: Annotated[str, Field(max_length=64)] | None = None
    data: str | None = None


class TextBlock(OpenAIBody):
    """Holds a text; a block of any other type is refused by the name of its type."""

    type: BlockType
    text: str | None = None
    citations: Label = None
    cache_control: Label = None

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        check_block(self, frozenset({"text"}))
        return self


class ResultBlock(OpenAIBody):
    """Holds a text or a picture of what a tool has answered."""

    type: BlockType
    text: str | None = None
    source: Source | None = None
    citations: Label = None
    cache_control: Label = None

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        check_block(self, frozenset({"text", "image"}))
        return self

    @property
    def picture(self) -> str | None:
        return picture_of(self)


def picture_of(block: "ResultBlock | Block") -> str | None:
    """Return the picture of a block as a URL; None of any other."""
    if block.type != "image" or block.source is None:
        return None
    return f"data:{block.source.media_type};base64,{block.source.data}"


def check_block(block: "TextBlock | ResultBlock | Block", types: Iterable[str]) -> None:
    """Raise PydanticCustomError for a type that is not among these, or a field that is missing."""
    kind = block.type
    if kind not in types:
        raise PydanticCustomError(
            "unsupported", "is not supported as a block of type '{kind}'", {"kind": kind}
        )
    for name in _NEEDED[kind]:
        check_part(block, name)
    if kind == "image" and not isinstance(block, TextBlock) and block.source is not None:
        _check_source(block.source)


def _check_source(source: Source) -> None:
    """Raise PydanticCustomError for a picture that would have to be fetched, or is incomplete."""
    if source.type != "base64":
        raise PydanticCustomError(
            "unsupported", "is not supported with a source of type '{kind}'", {"kind": source.type}
        )
    for name in ("media_type", "data"):
        check_part(source, name)


#: a string is one text
Texts = Annotated[
    list[TextBlock],
    Field(max_length=MAX_PARTS, fail_fast=True),
    BeforeValidator(parts, json_schema_input_type=str | list[TextBlock] | None),
]


Results = Annotated[
    list[ResultBlock],
    Field(max_length=MAX_PARTS, fail_fast=True),
    BeforeValidator(parts, json_schema_input_type=str | list[ResultBlock] | None),
]


class Block(OpenAIBody):
    """Holds a part of a message. What only Anthropic can read of it (signatures) has no effect."""

    type: BlockType
    text: str | None = None
    source: Source | None = None
    thinking: str | None = None
    signature: Label = None
    data: Label = None
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    content: Results = Field(default_factory=list)
    is_error: Label = None
    caller: Label = None
    toolset_name: Label = None
    citations: Label = None
    cache_control: Label = None

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        check_block(self, _NEEDED)
        return self

    @property
    def picture(self) -> str | None:
        return picture_of(self)


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
        foreign = {
            "assistant": ("tool_result", "image"),
            "user": _OF_ASSISTANTS,
            "system": _NOT_TEXT,
        }
        for block in self.content:
            if block.type in foreign[self.role]:
                raise PydanticCustomError(
                    "role",
                    "A message of the role '{role}' holds no block of type '{kind}'",
                    {"role": self.role, "kind": block.type},
                )
        return self


_OF_ASSISTANTS = ("thinking", "redacted_thinking", "tool_use")
_NOT_TEXT = (*_OF_ASSISTANTS, "tool_result", "image")

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
    # by the user, since the last other turn: joined once, however many
    own: list[protocol.ChatMessage] = []
    for turn in (turn for message in messages for turn in _turns(message)):
        if turn.role == "user" or (turn.role == "system" and (turns or own)):
            own.append(turn)
            continue
        turns += _user_turn(own)
        own = []
        turns.append(turn)
    return (*turns, *_user_turn(own))


def _user_turn(own: list[protocol.ChatMessage]) -> list[protocol.ChatMessage]:
    return [one_turn(own, "\n\n")] if own else []


def _turns(message: AnthropicMessage) -> Iterator[protocol.ChatMessage]:
    if message.role == "assistant":
        yield _assistant(message.content)
        return
    spoken: list[Block] = []
    for block in message.content:
        if block.type == "tool_result":
            if spoken:
                yield _spoken(message.role, spoken)
            spoken = []
            yield _result(block)
        else:
            spoken.append(block)
    if spoken or not message.content:
        yield _spoken(message.role, spoken)


def _spoken(role: str, blocks: Iterable[Block]) -> protocol.ChatMessage:
    text, pictures = said(blocks)
    return protocol.ChatMessage(role, text, pictures=pictures)


def _result(block: Block) -> protocol.ChatMessage:
    """Return what a tool has answered, a line break between two texts."""
    text, pictures = said(block.content, "\n")
    return protocol.ChatMessage("tool", text, tool_call_id=block.tool_use_id, pictures=pictures)


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
