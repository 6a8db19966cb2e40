"""Reads streams of server-sent events."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

#: an event's name, and its data as JSON; the mark that ends OpenAI's streams is text
SseEvent = tuple[str, Any]
STREAM_END: SseEvent = ("message", "[DONE]")


def events_of(body: str | bytes) -> list[SseEvent]:
    """Return the events of a whole body."""
    text = body.decode() if isinstance(body, bytes) else body
    return list(iter_events(text.split("\n")))


def iter_events(lines: Iterable[str]) -> Iterator[SseEvent]:
    """Yield events as their lines come; comments are left out."""
    name = "message"
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, value if value == "[DONE]" else json.loads(value)
        elif not line:
            name = "message"
