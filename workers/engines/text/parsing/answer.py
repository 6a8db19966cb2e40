"""Parses a chat model's answer as it comes into content, reasoning and tool calls."""

import secrets
import string
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import regex

from workers.engines.stop_strings import StopFinder
from workers.engines.text.history import template_tools
from workers.engines.text.parsing.calls import Call, calls_of_json
from workers.engines.text.parsing.recognition import ResponseFormat
from workers.engines.text.parsing.region_parser import (
    REASONING_FIELDS,
    RegionEvent,
    RegionParser,
)
from workers.protocol import Tool, ToolCall

_LETTERS = string.ascii_letters + string.digits
_MOST_ID = 256  #: characters of a call's id; the protocol takes no more


class Piece(NamedTuple):
    """Holds the part of an answer that may be shown now."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class AnswerParser:
    """Parses one answer. A call is emitted once it is complete; a malformed one is content."""

    def __init__(
        self,
        form: ResponseFormat,
        begun: str,
        tools: Sequence[Tool],
        stops: StopFinder,
        *,
        parallel: bool = True,
    ) -> None:
        """``begun``: what the prompt has written of the answer; ``stops`` end the content only.

        Without ``parallel`` the answer ends with its first call.
        """
        self._family = form.family
        self._schemas = schemas_of(tools)
        own_tools = template_tools(tools) if form.family is None else ()
        self._regions = RegionParser(form.template(tools=bool(tools)), begun, own_tools)
        self._stops = stops
        self._watches = True
        self._parallel = parallel
        self._content = _Trimmed()
        self._reasoning = _Trimmed(after_marker=True)
        self._calls = 0
        self._cut = False
        bare = form.family.bare if form.family and tools else None
        self._bare = regex.compile(bare) if bare and not begun.strip() else None
        self._start = ""  #: the answer's first characters, until it is clear what they begin
        self._marker = ""  #: put before a call that came without one
        self.stopped = False
        self._skip_begun()

    @property
    def reasons(self) -> bool:
        """Return whether the model is reasoning now."""
        return self._regions.region in REASONING_FIELDS

    @property
    def called(self) -> bool:
        """Return whether the answer has called a tool."""
        return self._calls > 0

    def push(self, text: str, *, stops: bool = True) -> Piece:
        """Take more text of the answer; without ``stops`` no stop string ends it."""
        self._watches = stops
        if self._bare is not None:
            text = self._with_marker(text)
        return self._shown(self._regions.take(text)) if text else Piece()

    def end(self, *, cut: bool) -> Piece:
        """Return what is left; ``cut``: the answer has not ended by itself."""
        self._cut = cut
        start, self._start, self._bare = self._start, "", None
        events = (self._regions.take(start) if start else []) + self._regions.end()
        piece = self._shown(events)
        if self.stopped:
            return piece
        rest = self._content.push(self._stops.flush()) + self._content.rest()
        return piece._replace(text=piece.text + rest)

    def _with_marker(self, text: str) -> str:
        """Hold text back until it is clear whether the answer is a call without its marker."""
        assert self._bare is not None
        self._start += text
        found = self._bare.match(self._start, partial=True)
        if found is not None and found.partial:
            return ""
        start, self._start, self._bare = self._start, "", None
        if found is None:
            return start
        assert self._family is not None
        assert self._family.tools is not None
        self._marker = self._family.tools[0][0]
        return self._marker + start

    def _skip_begun(self) -> None:
        """Begin in the state that the prompt ends in; nothing of the prompt is shown again."""
        for event in self._regions.before:
            if event.kind == "close":
                self._content.after_marker()
            elif event.kind == "text" and event.field == "content" and event.text.strip():
                self._content = _Trimmed()
            elif event.kind == "text" and event.field in REASONING_FIELDS and event.text.strip():
                self._reasoning = _Trimmed()

    def _shown(self, events: Iterable[RegionEvent]) -> Piece:
        text: list[str] = []
        reasoning: list[str] = []
        calls: list[ToolCall] = []
        for event in events:
            if self.stopped:
                break
            if event.field == "content":
                text.append(self._take_content(event))
            elif event.field in REASONING_FIELDS:
                reasoning.append(self._take_reasoning(event))
            elif event.field == "tool_calls" and event.kind != "text":
                shown, made = self._take_call(event)
                text.append(shown)
                calls += made
        return Piece("".join(text), "".join(reasoning), tuple(calls))

    def _take_content(self, event: RegionEvent) -> str:
        return self._more_content(event.text) if event.kind == "text" else ""

    def _more_content(self, text: str) -> str:
        text = self._content.leading(text)
        text = self._stops.push(text) if self._watches else text
        self.stopped = self._stops.stopped
        shown = self._content.push(text)
        return shown + self._content.rest() if self.stopped else shown

    def _take_reasoning(self, event: RegionEvent) -> str:
        if event.kind == "text":
            return self._reasoning.push(self._reasoning.leading(event.text))
        self._reasoning.after_marker()
        if event.kind == "close":
            self._content.after_marker()
        return ""

    def _take_call(self, event: RegionEvent) -> tuple[str, list[ToolCall]]:
        """Return a call that has ended; its text as content if it is malformed or cut off."""
        if event.kind == "open":
            return self._content.push(self._stops.flush()), []
        calls = None if self._cut and not event.closed else self._read(event)
        if calls is None:
            whole = event.text.removeprefix(self._marker)
            return self._content.rest() + self._more_content(whole), []
        self._content.after_marker()
        if not self._parallel:
            calls = calls[:1]
            self.stopped = True
        self._calls += len(calls)
        return "", [
            ToolCall(id=self._id(each), name=each.name, arguments=each.arguments) for each in calls
        ]

    def _read(self, event: RegionEvent) -> list[Call] | None:
        if event.kind == "malformed":
            return None
        try:
            if self._family is None:
                return calls_of_json(event.value)
            return self._family.read(event.body, self._schemas)
        except (ValueError, TypeError, SyntaxError, KeyError, RecursionError, MemoryError):
            return None

    def _id(self, call: Call) -> str:
        if call.id is not None and len(call.id) <= _MOST_ID:
            return call.id
        if self._family is not None and self._family.nine_characters:
            return "".join(secrets.choice(_LETTERS) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


class _Trimmed:
    """Passes text without the blanks next to markers; those in its middle and at its ends stay."""

    def __init__(self, *, after_marker: bool = False) -> None:
        self._begins = after_marker
        self._blanks: list[str] = []

    def leading(self, text: str) -> str:
        """Return text without blanks that follow a marker."""
        if self._begins:
            text = text.lstrip()
            self._begins = not text
        return text

    def push(self, text: str) -> str:
        """Return what may be shown; blanks are held back until more text follows them."""
        plain = text.rstrip()
        if not plain:
            if text:
                self._blanks.append(text)
            return ""
        shown = self.rest() + plain
        if len(plain) < len(text):
            self._blanks.append(text[len(plain) :])
        return shown

    def rest(self) -> str:
        """Return blanks that were held back."""
        blanks = "".join(self._blanks)
        self._blanks = []
        return blanks

    def after_marker(self) -> None:
        """Drop blanks before a marker, and those that will follow it."""
        self._blanks = []
        self._begins = True


def schemas_of(tools: Iterable[Tool]) -> dict[str, dict[str, Any]]:
    """Return the schemas of each tool's parameters."""
    found: dict[str, dict[str, Any]] = {}
    for tool in tools:
        properties = (tool.parameters or {}).get("properties")
        found[tool.name] = properties if isinstance(properties, dict) else {}
    return found
