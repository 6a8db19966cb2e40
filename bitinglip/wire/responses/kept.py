"""Prepares the input that is stored with a response, and resolves items that refer to others."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bitinglip.errors import InvalidRequest
from bitinglip.wire.responses.items import (
    Shown,
    function_call,
    function_call_output,
    input_image,
    input_text,
    message_item,
    output_text,
    reasoning_item,
)
from bitinglip.work.text_inputs import pictures_of, with_sources
from workers import protocol

#: the ids of items that we have made end in that of their response, and their place in it
_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})_(?:in)?[0-9]{1,5}", re.ASCII)


def referred(items: Iterable[Shown]) -> set[str]:
    """Return the ids of the responses that hold the items which these refer to."""
    found = (_ITEM_ID.fullmatch(item["id"]) for item in items if _is_reference(item))
    return {f"resp_{match[1]}" for match in found if match}


def resolved(items: Sequence[Shown], known: Mapping[str, Shown]) -> list[Shown]:
    """Put the items that these refer to in their places.

    ``known``: items of earlier responses, by id. Raises InvalidRequest for an unknown id, and for
    one that comes again: a short request would become a prompt of any length.
    """
    found: list[Shown] = []
    used: set[str] = set()
    for number, item in enumerate(items):
        if _is_reference(item):
            param = f"input[{number}].id"
            if item["id"] not in known:
                raise InvalidRequest("There is no stored item with this id.", param=param)
            if item["id"] in used:
                raise InvalidRequest("This item is referred to twice.", param=param)
            used.add(item["id"])
            found.append(known[item["id"]])
        else:
            found.append(item)
    return found


def _is_reference(item: Shown) -> bool:
    return bool(item["type"] == "item_reference")


def kept_input(
    sent: protocol.TextJob,
    checked: protocol.TextJob,
    *,
    instructed: bool,
    response_id: str,
) -> list[Shown] | None:
    """Return the items to keep where the guard has changed a message; None if it has not.

    They are the whole conversation as the model got it, without what was before it by reference.
    ``instructed``: the first message holds instructions, which are no items.
    """
    if checked.messages is None:
        return None
    # What the job runs with names files; the URLs are what the client has sent.
    sources = [each.source for each in pictures_of(sent)]
    messages = with_sources(checked.messages, sources)
    plain = with_sources(sent.messages or (), sources)
    if messages == plain:
        return None
    return items_of(messages[1:] if instructed else messages, response_id)


def items_of(messages: Iterable[protocol.ChatMessage], response_id: str) -> list[Shown]:
    """Describe a conversation as items: what is kept where the guard has changed what was sent."""
    tail = response_id.removeprefix("resp_")
    items: list[Shown] = []
    for message in messages:
        for item in _items_of(message):
            item["id"] = f"{item['id']}_{tail}_in{len(items)}"
            items.append(item)
    return items


def _items_of(message: protocol.ChatMessage) -> Iterator[Shown]:
    if message.role == "tool":
        yield function_call_output("fco", message.tool_call_id, message.content)
        return
    if message.reasoning:
        yield reasoning_item("rs", message.reasoning)
    if message.role == "assistant":
        if message.content:
            yield message_item("msg", [output_text(message.content)])
    else:
        parts = [
            input_text(each) if isinstance(each, str) else input_image(each.source)
            for each in message.parts() or [""]
        ]
        yield message_item("msg", parts, role=message.role)
    for call in message.tool_calls:
        yield function_call("fc", call)
