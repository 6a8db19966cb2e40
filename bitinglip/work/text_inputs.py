"""Finds the texts of a text job that a model will read, by the field of the request that holds
each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from workers import protocol

_VARIABLES = "chat_template_kwargs"
#: What a schema says of values, and not to a model; members of these names are objects otherwise.
_OF_SCHEMAS = frozenset({"type", "format", "pattern", "required", "$ref", "$schema", "$id"})
_NONE: frozenset[str] = frozenset()


def pictures_of(work: protocol.Job) -> list[protocol.Picture]:
    """Return the pictures of all messages of a job, in their order."""
    messages = work.messages if isinstance(work, protocol.TextJob) else None
    pictures: list[protocol.Picture] = []
    for message in messages or ():
        if message.pictures:
            pictures += message.pictures
    return pictures


def with_sources(
    messages: Iterable[protocol.ChatMessage], sources: Iterable[str]
) -> tuple[protocol.ChatMessage, ...]:
    """Return messages whose pictures come from these files or URLs, without their sizes."""
    rest = iter(sources)
    return tuple(
        msgspec.structs.replace(
            message, pictures=tuple(protocol.Picture(next(rest), p.at) for p in message.pictures)
        )
        if message.pictures
        else message
        for message in messages
    )


def texts_of_text(work: protocol.TextJob) -> dict[str, str]:
    """Return the prompts, or all that messages, tools and template variables say."""
    if work.messages is None:
        return _prompts(work)
    return _messages(work.messages) | _told(work)


def text_with(work: protocol.TextJob, texts: Mapping[str, str]) -> protocol.TextJob:
    """Return the message with these texts in place of its own; others stay."""
    if work.messages is not None:
        messages = tuple(
            _with_texts(message, number, texts) for number, message in enumerate(work.messages)
        )
        tools = tuple(
            _with_told(tool, f"tools[{number}].function", texts)
            for number, tool in enumerate(work.tools)
        )
        variables = _replaced(work.template_kwargs, _VARIABLES, texts)
        return msgspec.structs.replace(
            work, messages=messages, tools=tools, template_kwargs=variables
        )
    if work.prompts:
        prompts = [texts.get(_field(number), prompt) for number, prompt in enumerate(work.prompts)]
        return msgspec.structs.replace(work, prompts=tuple(prompts))
    return msgspec.structs.replace(work, **texts)


def _messages(messages: Sequence[protocol.ChatMessage]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, message in enumerate(messages):
        if message.pictures:
            found |= {
                f"messages[{number}].content[{place}]": part
                for place, part in enumerate(message.parts())
                if isinstance(part, str)
            }
        else:
            found[f"messages[{number}].content"] = message.content
        if message.name is not None:
            found[f"messages[{number}].name"] = message.name
        if message.reasoning is not None:
            found[f"messages[{number}].reasoning"] = message.reasoning
        for place, call in enumerate(message.tool_calls):
            found[_arguments(number, place)] = call.arguments
    return found


def _told(work: protocol.TextJob) -> dict[str, str]:
    """Return what templates write of tools and of their own variables."""
    found: dict[str, str] = {}
    for number, tool in enumerate(work.tools):
        field = f"tools[{number}].function"
        if tool.description:
            found[f"{field}.description"] = tool.description
        found |= _strings(tool.parameters, f"{field}.parameters", _OF_SCHEMAS)
    return found | dict(_strings(work.template_kwargs, _VARIABLES))


def _with_told(tool: protocol.Tool, field: str, texts: Mapping[str, str]) -> protocol.Tool:
    return msgspec.structs.replace(
        tool,
        description=texts.get(f"{field}.description", tool.description),
        parameters=_replaced(tool.parameters, f"{field}.parameters", texts),
    )


def _strings(value: Any, field: str, left_out: frozenset[str] = _NONE) -> Iterator[tuple[str, str]]:
    """Yield the strings of any JSON, by where they are; names of members are none.

    ``left_out``: members that are passed over, unless they are objects.
    """
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for name, each in value.items():
            if name not in left_out or isinstance(each, dict):
                yield from _strings(each, f"{field}.{name}", left_out)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _strings(each, f"{field}[{number}]", left_out)


def _replaced(value: Any, field: str, texts: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return texts.get(field, value)
    if isinstance(value, dict):
        return {name: _replaced(each, f"{field}.{name}", texts) for name, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, f"{field}[{i}]", texts) for i, each in enumerate(value)]
    return value


def _prompts(work: protocol.TextJob) -> dict[str, str]:
    if not work.prompts:
        return {"prompt": work.prompt or ""}
    return {
        _field(number): prompt
        for number, prompt in enumerate(work.prompts)
        if isinstance(prompt, str)
    }


def _field(number: int) -> str:
    return f"prompt[{number}]"


def _with_texts(
    message: protocol.ChatMessage, number: int, texts: Mapping[str, str]
) -> protocol.ChatMessage:
    calls = tuple(
        msgspec.structs.replace(
            call, arguments=texts.get(_arguments(number, place), call.arguments)
        )
        for place, call in enumerate(message.tool_calls)
    )
    content, pictures = _content(message, number, texts)
    return msgspec.structs.replace(
        message,
        content=content,
        pictures=pictures,
        name=texts.get(f"messages[{number}].name", message.name),
        reasoning=texts.get(f"messages[{number}].reasoning", message.reasoning),
        tool_calls=calls,
    )


def _content(
    message: protocol.ChatMessage, number: int, texts: Mapping[str, str]
) -> tuple[str, tuple[protocol.Picture, ...]]:
    """Return a message's text and its pictures, each between the same texts as before."""
    if not message.pictures:
        return texts.get(f"messages[{number}].content", message.content), ()
    said: list[str] = []
    pictures: list[protocol.Picture] = []
    for place, part in enumerate(message.parts()):
        if isinstance(part, str):
            said.append(texts.get(f"messages[{number}].content[{place}]", part))
        else:
            pictures.append(msgspec.structs.replace(part, at=sum(map(len, said))))
    return "".join(said), tuple(pictures)


def _arguments(number: int, place: int) -> str:
    return f"messages[{number}].tool_calls[{place}].function.arguments"
