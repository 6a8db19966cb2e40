"""Reads the body of a server-sent event stream."""

import json
from typing import Any


def events_of(text: str) -> list[tuple[str, Any]]:
    """The (name, data) pairs of an SSE body."""
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            events.append((fields.get("event", "message"), json.loads(fields["data"])))
    return events
