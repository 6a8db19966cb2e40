"""Declares items, which a response is made from and consists of: messages, calls, reasoning."""

from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bitinglip.wire.body import AllowedValues
from bitinglip.wire.openai_body import Label, OpenAIBody
from bitinglip.wire.text.fields import MAX_PARTS
from bitinglip.wire.text.pictures import PictureUrl, check_part, said
from workers import protocol

MAX_ITEMS = 8192
_IN_NAMESPACE = "."  #: between a namespace and a name in it
_PACKED = "bitinglip-1."  #: begins a text that is packed
_LONGEST_NAME = 256
Name = Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]
Kind = Annotated[str, Field(max_length=64, pattern="^[a-z0-9_]+$")]
_PICTURE = "input_image"
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")
#: by type: the fields that an item must have
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "message": ("role",),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
    "item_reference": ("id",),
}


class ItemPart(OpenAIBody):
    """A part of an item's content; files and sounds are refused by their type."""

    type: Kind
    text: str | None = None
    image_url: PictureUrl | None = None
    file_id: Annotated[Any, AllowedValues((None,))] = None
    detail: Label = None
    refusal: str | None = None
    annotations: Label = None
    logprobs: Label = None

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.type == _PICTURE:
            check_part(self, "image_url")
            return self
        if self.type not in _TEXT_PARTS:
            raise PydanticCustomError(
                "unsupported", "is not supported as a part of type '{kind}'", {"kind": self.type}
            )
        if self.said is None:
            raise PydanticCustomError("missing", "It has no text")
        return self

    @property
    def picture(self) -> str | None:
        return self.image_url if self.type == _PICTURE else None

    @property
    def said(self) -> str | None:
        return self.refusal if self.type == "refusal" else self.text


def _parts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


#: a string is one part
Parts = Annotated[
    list[ItemPart],
    Field(max_length=MAX_PARTS, fail_fast=True),
    BeforeValidator(_parts, json_schema_input_type=str | list[ItemPart]),
]


class Item(OpenAIBody):
    """Is one item; a message may leave its type out."""

    type: Kind | None = None
    id: Name | None = None
    status: Label = None
    phase: Label = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Parts | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: str | None = None
    output: Parts | None = None
    summary: Parts | None = None
    encrypted_content: str | None = None
    namespace: Name | None = None
    caller: Label = None
    asynchronous: Annotated[Label, Field(alias="async")] = None

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        kind = self.kind
        if kind not in _NEEDED:
            raise PydanticCustomError(
                "unsupported", "is not supported as an item of type '{kind}'", {"kind": kind}
            )
        needed = _NEEDED[kind]
        if kind == "message" and self.role != "assistant":
            needed = (*needed, "content")
        for name in needed:
            if getattr(self, name) is None:
                raise PydanticCustomError("missing", "It has no '{name}'", {"name": name})
        check_name(self.namespace, self.name)
        own = self.content if kind == "message" and self.role == "user" else None
        for parts in (self.content, self.output, self.summary):
            if parts is not own and any(part.picture is not None for part in parts or ()):
                raise PydanticCustomError(
                    "unsupported", "is not supported with a picture that is not in a user's message"
                )
        return self

    @property
    def kind(self) -> str:
        """Return its type; one that has an id alone refers to another item."""
        if self.type is not None:
            return self.type
        return "item_reference" if self.id is not None and self.role is None else "message"


def _items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


#: a string is what a user says
Input = Annotated[
    list[Item],
    Field(max_length=MAX_ITEMS, fail_fast=True),
    BeforeValidator(_items, json_schema_input_type=str | list[Item]),
]

#: an item as JSON, as it is stored and shown
Shown = dict[str, Any]


def shown_items(items: Iterable[Item], response_id: str) -> list[Shown]:
    """Describe what a client sent, with ids for items that have none."""
    tail = response_id.removeprefix("resp_")
    return [_shown(item, f"{tail}_in{number}") for number, item in enumerate(items)]


def _shown(item: Item, tail: str) -> Shown:
    own_id = item.id
    match item.kind:
        case "message":
            parts = [_shown_part(part, item.role) for part in item.content or ()]
            return message_item(own_id or f"msg_{tail}", parts, role=item.role)
        case "function_call":
            name = joined_name(item.namespace, item.name or "")
            call = protocol.ToolCall(
                id=item.call_id or "", name=name, arguments=item.arguments or ""
            )
            namespaces = {item.namespace} if item.namespace is not None else ()
            return function_call(own_id or f"fc_{tail}", call, namespaces=namespaces)
        case "function_call_output":
            return function_call_output(own_id or f"fco_{tail}", item.call_id, joined(item.output))
        case "reasoning":
            thought = joined(item.content) or _unpacked(item.encrypted_content)
            thought = thought or joined(item.summary)
            return reasoning_item(own_id or f"rs_{tail}", thought)
        case kind:
            return {"id": own_id, "type": kind}


def _shown_part(part: ItemPart, role: str | None) -> Shown:
    if part.type == "refusal":
        return {"type": "refusal", "refusal": part.refusal}
    if part.picture is not None:
        return input_image(part.picture)
    return output_text(part.text or "") if role == "assistant" else input_text(part.text or "")


def input_text(text: str) -> Shown:
    return {"type": "input_text", "text": text}


def input_image(url: str) -> Shown:
    return {"type": _PICTURE, "image_url": url, "file_id": None, "detail": "auto"}


def output_text(text: str, logprobs: Sequence[Shown] = ()) -> Shown:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*logprobs]}


def message_item(
    item_id: str,
    parts: list[Shown],
    status: str = "completed",
    *,
    role: str | None = "assistant",
) -> Shown:
    return {
        "id": item_id,
        "type": "message",
        "status": status,
        "role": role,
        "content": parts,
    }


def function_call(
    item_id: str,
    call: protocol.ToolCall | protocol.ToolCallDelta,
    status: str = "completed",
    *,
    arguments: str | None = None,
    namespaces: Collection[str] = (),
) -> Shown:
    """Describe a call; ``arguments``: what there is of them, if not the call's own."""
    namespace, _, name = call.name.partition(_IN_NAMESPACE)
    named = {"namespace": namespace, "name": name} if namespace in namespaces else None
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        **(named or {"name": call.name}),
        "arguments": call.arguments if arguments is None else arguments,
    }


def function_call_output(item_id: str, call_id: str | None, output: str) -> Shown:
    return {
        "id": item_id,
        "type": "function_call_output",
        "status": "completed",
        "call_id": call_id,
        "output": output,
    }


def joined_name(namespace: str | None, name: str) -> str:
    """Return the name that a model knows a function by."""
    return name if namespace is None else f"{namespace}{_IN_NAMESPACE}{name}"


def check_name(namespace: str | None, name: str | None) -> None:
    """Raise PydanticCustomError for a name that no message to a worker holds."""
    if len(joined_name(namespace, name or "")) > _LONGEST_NAME:
        raise PydanticCustomError(
            "too_long", "Its name and namespace have more than 256 characters together"
        )


def reasoning_item(
    item_id: str,
    text: str,
    status: str = "completed",
    *,
    packed: bool = False,
    summarised: bool = False,
) -> Shown:
    """Describe what the model thought.

    ``packed``: some clients send nothing of it back but what is called encrypted, so the text is
    there once more. It is no secret: the client has it. ``summarised``: clients that ask for a
    summary show nothing else, so the text stands in its place.
    """
    content = [{"type": "reasoning_text", "text": text}] if text and not summarised else []
    summary = [summary_text(text)] if text and summarised else []
    return {
        "id": item_id,
        "type": "reasoning",
        "status": status,
        "summary": summary,
        "content": content,
        "encrypted_content": _packed(text) if packed and text else None,
    }


def summary_text(text: str) -> Shown:
    return {"type": "summary_text", "text": text}


def _packed(text: str) -> str:
    return _PACKED + b64encode(text.encode()).decode()


def _unpacked(value: str | None) -> str:
    """Return the text of ``_packed``; nothing of what another server has made."""
    if value is None or not value.startswith(_PACKED):
        return ""
    try:
        return b64decode(value.removeprefix(_PACKED), validate=True).decode()
    except ValueError:
        return ""


def joined(parts: Iterable[ItemPart] | None) -> str:
    return "".join(part.said or "" for part in parts or ())


# ---- items as a conversation ---------------------------------------------------------------------


def chat_messages(
    instructions: str | None, items: Iterable[Shown]
) -> tuple[protocol.ChatMessage, ...]:
    """Make the messages to a worker.

    Reasoning, text and calls that follow one another are one turn of the assistant's. What the
    system says in the beginning is one message: many templates take no second one.
    """
    told = [instructions] if instructions else []
    turns: list[protocol.ChatMessage] = []
    open_turn: _Turn | None = None
    for item in items:
        if _is_assistants(item):
            if open_turn is None or not open_turn.takes(item):
                turns += _closed(open_turn)
                open_turn = _Turn()
            open_turn.add(item)
            continue
        turns += _closed(open_turn)
        open_turn = None
        if item["type"] == "function_call_output":
            turns.append(protocol.ChatMessage("tool", item["output"], tool_call_id=item["call_id"]))
            continue
        role = "system" if item["role"] in ("system", "developer") else item["role"]
        if role == "system" and not turns:
            told.append(_text_of(item))
        else:
            turns.append(_spoken(role, item["content"]))
    turns += _closed(open_turn)
    first = [protocol.ChatMessage("system", "\n\n".join(told))] if told else []
    return (*first, *turns)


def _spoken(role: str, parts: Iterable[Shown]) -> protocol.ChatMessage:
    text, pictures = said(map(_Shown, parts))
    return protocol.ChatMessage(role, text, pictures=pictures)


class _Shown:
    """Reads a part that is stored as JSON."""

    def __init__(self, part: Shown) -> None:
        self.text = _texts((part,))
        self.picture: str | None = part.get("image_url")


def _is_assistants(item: Shown) -> bool:
    kind = item["type"]
    return kind in ("reasoning", "function_call") or item.get("role") == "assistant"


def _text_of(item: Shown) -> str:
    return _texts(item["content"])


def _texts(parts: Iterable[Shown]) -> str:
    return "".join(part.get("text") or part.get("refusal") or "" for part in parts)


class _Turn:
    """Gathers the items of one turn of the assistant's."""

    def __init__(self) -> None:
        self._thoughts: list[str] = []
        self._texts: list[str] = []
        self._calls: list[protocol.ToolCall] = []

    def takes(self, item: Shown) -> bool:
        """Return whether an item belongs to this turn: after text or a call only calls do."""
        return item["type"] == "function_call" or not (self._calls or self._texts)

    def add(self, item: Shown) -> None:
        match item["type"]:
            case "reasoning":
                self._thoughts.append(_texts(item["content"]) or _texts(item["summary"]))
            case "function_call":
                name = joined_name(item.get("namespace"), item["name"])
                call = protocol.ToolCall(id=item["call_id"], name=name, arguments=item["arguments"])
                self._calls.append(call)
            case _:
                self._texts.append(_text_of(item))

    def message(self) -> protocol.ChatMessage:
        return protocol.ChatMessage(
            "assistant",
            "".join(self._texts),
            tool_calls=tuple(self._calls),
            reasoning="".join(self._thoughts) or None,
        )


def _closed(turn: _Turn | None) -> list[protocol.ChatMessage]:
    return [] if turn is None else [turn.message()]
