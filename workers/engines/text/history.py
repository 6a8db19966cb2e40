"""Makes what a chat template is given of a conversation: each template takes calls in its own way.

Some templates write a call's arguments as JSON themselves and want an object, some add them to text
and want text; to some a turn without content is an empty text, to some it is none. A conversation
that is known tells which way leaves nothing out.
"""

import hashlib
import json
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workers.engines.base import Refused
from workers.protocol import ChatMessage, Tool, ToolCall

_LETTERS = string.ascii_letters + string.digits
_BROKEN = '{"probe_key": oops'
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class HistoryForm:
    """Tells how a template takes earlier turns."""

    knows_calls: bool = True
    knows_answers: bool = True  #: has a turn for what a tool has answered
    objects: bool = True  #: arguments are objects, else JSON text
    broken_text: bool = False  #: arguments that are no object are given as the text they are
    empty: str | None = ""  #: the content of a turn that has none
    nine_characters: bool = False  #: ids of calls must be nine letters or digits
    reasoning_key: str | None = None


def found_form(source: str, render: Callable[[list[dict[str, Any]]], str]) -> HistoryForm:
    """Find out how a template takes calls; ``render`` raises Refused where it cannot."""
    key = next((each for each in _REASONING_KEYS if each in source), None)
    if "tool_calls" not in source:
        answers = "'tool'" in source or '"tool"' in source
        return HistoryForm(knows_calls=False, knows_answers=answers, reasoning_key=key)

    def rendered(form: HistoryForm, arguments: str, id: str = "abcdef123") -> str:
        try:
            return render(template_messages(_probe(arguments, id), form))
        except Refused:
            return ""

    good = json.dumps({"probe_key": "probe value"})
    for empty in ("", None):
        for objects in (True, False):
            form = HistoryForm(objects=objects, empty=empty, reasoning_key=key)
            if _is_whole(rendered(form, good)):
                nine = not _is_whole(rendered(form, good, "call_0123456789"))
                broken = _BROKEN in rendered(replace(form, broken_text=True), _BROKEN)
                return replace(form, nine_characters=nine, broken_text=broken)
    return HistoryForm(reasoning_key=key)


def _probe(arguments: str, id: str) -> tuple[ChatMessage, ...]:
    call = ToolCall(id=id, name="probe_tool", arguments=arguments)
    return (
        ChatMessage("user", "probe question"),
        ChatMessage("assistant", "", tool_calls=(call,)),
        ChatMessage("tool", "probe result", tool_call_id=id),
    )


def _is_whole(text: str) -> bool:
    """Return whether a rendered probe holds its call once, and not as text within text."""
    needed = ("probe_tool", "probe_key", "probe value", "probe result")
    wrong = ("None", "'probe_key'", '\\"probe_key')
    return all(each in text for each in needed) and not any(each in text for each in wrong)


def template_messages(messages: Sequence[ChatMessage], form: HistoryForm) -> list[dict[str, Any]]:
    """Return messages as a template takes them."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_message(message, form, names) for message in messages]


def in_parts(
    plain: Sequence[dict[str, Any]], messages: Sequence[ChatMessage], *, texts: bool
) -> list[dict[str, Any]]:
    """Return messages with contents as lists of parts, as templates take pictures.

    ``plain``: what ``template_messages`` made of them. ``texts``: contents without a picture stay
    texts, if the template takes those.
    """
    return [
        one if texts and not message.pictures else {**one, "content": _parts(one, message)}
        for one, message in zip(plain, messages, strict=True)
    ]


def _parts(plain: dict[str, Any], message: ChatMessage) -> list[dict[str, Any]]:
    if message.pictures and plain["content"] == message.content:
        return [
            {"type": "text", "text": each} if isinstance(each, str) else {"type": "image"}
            for each in message.parts()
        ]
    # What the template has no form for, such as a tool's answer, is told as text, after pictures.
    images = [{"type": "image"} for _ in message.pictures]
    return [*images, {"type": "text", "text": plain["content"]}] if plain["content"] else images


def _message(message: ChatMessage, form: HistoryForm, names: dict[str, str]) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "tool" and not form.knows_answers:
        answer = f"<tool_response>\n{message.content}\n</tool_response>"
        return {"role": "user", "content": answer}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = _id(message.tool_call_id, form)
        if message.name is None and message.tool_call_id in names:
            plain["name"] = names[message.tool_call_id]
    if message.tool_calls and form.knows_calls:
        plain["tool_calls"] = [_call(each, form) for each in message.tool_calls]
        if not message.content:
            plain["content"] = form.empty
    elif message.tool_calls:
        calls = [f"<tool_call>\n{_as_text(each)}\n</tool_call>" for each in message.tool_calls]
        plain["content"] = "\n".join([message.content, *calls] if message.content else calls)
    # gpt-oss's template refuses reasoning and content in a turn that calls
    both = form.reasoning_key == "thinking" and message.tool_calls and message.content
    if message.reasoning and form.reasoning_key is not None and not both:
        plain[form.reasoning_key] = message.reasoning
    return plain


def _call(call: ToolCall, form: HistoryForm) -> dict[str, Any]:
    return {
        "id": _id(call.id, form),
        "type": "function",
        "function": {"name": call.name, "arguments": _arguments(call.arguments, form)},
    }


def _arguments(text: str, form: HistoryForm) -> Any:
    """Return arguments in the template's form; those that are no object survive as they are."""
    try:
        value = json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        value = text
    if value is None:
        value = {}
    if not form.objects:
        return "{}" if value == {} else text
    if isinstance(value, dict):
        return value
    return text if form.broken_text else {"arguments": text}


def _as_text(call: ToolCall) -> str:
    arguments = "{}" if call.arguments.strip() in ("", "null") else call.arguments
    return f'{{"name": {json.dumps(call.name)}, "arguments": {arguments}}}'


def _id(id: str, form: HistoryForm) -> str:
    """Return a call's id, or nine characters that stand for it where the template wants those."""
    nine = len(id) == 9 and id.isascii() and id.isalnum()
    if nine or not form.nine_characters:
        return id
    digest = hashlib.blake2b(id.encode("utf-8", "replace"), digest_size=9).digest()
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest)


def template_tools(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return tools as templates and the library take them: in OpenAI's form."""
    return [{"type": "function", "function": _function(tool)} for tool in tools]


def _function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description or ""}
    parameters = tool.parameters or {"type": "object", "properties": {}}
    return {**function, "parameters": parameters}


def characters(messages: Iterable[ChatMessage]) -> int:
    """Return how many characters messages hold, those of their calls included."""
    return sum(len(text) for each in messages for text in each.texts())
