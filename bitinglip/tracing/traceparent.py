"""Reads and writes the headers of the W3C's trace context."""

import re
from typing import NamedTuple

_HEADER = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_LONGEST_STATE = 512  #: characters of a tracestate that are passed on


class Parent(NamedTuple):
    """Names the span that a client has begun, and whether its trace is kept."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str  #: what vendors pass along, as it came


def parse(traceparent: bytes | None, tracestate: bytes | None) -> Parent | None:
    """Return the parent that a request names; None if it names none, or none that is valid."""
    found = _HEADER.fullmatch(traceparent or b"")
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5]):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not span_id:
        return None
    state = (tracestate or b"").decode("latin-1")
    return Parent(trace_id, span_id, bool(int(found[4], 16) & 1), state[:_LONGEST_STATE])


def traceparent(trace_id: int, span_id: int) -> str:
    """Write the header of a span whose trace is kept."""
    return f"00-{trace_id:032x}-{span_id:016x}-01"
