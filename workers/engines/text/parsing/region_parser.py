"""Hardens the library's parser of responses: it tells malformed regions and never raises.

The library's own raises for a malformed call, keeps all text it was fed, and lets a pattern of a
model's template run for as long as it likes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import regex
from transformers.utils.chat_parsing.response_parser import ResponseParser
from transformers.utils.chat_parsing.response_templates import ResponseTemplate

log = logging.getLogger(__name__)

REASONING_FIELDS = frozenset({"reasoning_content", "reasoning", "thinking"})
#: Regions whose text is shown as it comes; of others the value counts.
SHOWN_FIELDS = frozenset({"content", *REASONING_FIELDS})
_LONGEST_HELD = 512  #: characters that might begin a marker
_PATTERN_SECONDS = 0.05


@dataclass(slots=True, frozen=True)
class RegionEvent:
    """Tells that a region of a response has begun, has more text, or has ended."""

    kind: Literal["open", "text", "close", "malformed"]
    field: str
    text: str = ""  #: of a region that ended: all of it, with its markers
    body: str = ""  #: of a region that ended: what is between its markers
    value: Any = None
    closed: bool = True  #: by its marker, and not by the end of the response


class RegionParser(ResponseParser):  # type: ignore[misc]  # the library is not typed
    """Parses one response as its text comes."""

    _buffer: str
    _pos: int  #: how much of the buffer is read
    _body: str  #: of the open region
    _current: str | None  #: the field of the open region
    _opened: bool
    _implicit_name: str | None

    def __init__(
        self, template: ResponseTemplate, prefix: str, tools: Sequence[dict[str, Any]] = ()
    ) -> None:
        """``prefix``: what the prompt has already written of the response.

        ``template``: one that ``bounded`` has returned, without an anchor left to look for.
        """
        self._begin = 0  #: where the open region begins in the buffer
        self._marker = 0  #: characters of the marker that opened it
        self._failed = False
        super().__init__(template, prefix="", tools=list(tools))
        self.before = self.take(prefix) if prefix else []  #: what the prefix has begun

    @property
    def region(self) -> str | None:
        """Return the field whose region is open; None where no text belongs to any."""
        return self._current if self._opened else self._implicit_name

    def take(self, text: str) -> list[RegionEvent]:
        """Parse more text."""
        events: list[Any] = []
        if self._failed:
            return [RegionEvent("text", "content", text)]
        self._buffer += text
        self._guarded(events, eos=False)
        return events

    def end(self) -> list[RegionEvent]:
        """Return what is left when no more text will come."""
        events: list[Any] = []
        if not self._failed:
            self._guarded(events, eos=True)
        return events

    def _guarded(self, events: list[Any], *, eos: bool) -> None:
        try:
            self._process(events, eos=eos)
        except Exception as error:  # noqa: BLE001  a model's own template may fail in any way
            log.warning("the response template failed: %s", type(error).__name__)
            self._failed = True
            hidden = self._opened and self._current not in SHOWN_FIELDS
            rest = self._buffer[self._begin if hidden else self._pos :]
            events.append(RegionEvent("text", "content", rest))
            return
        if self._current is None or self._current in SHOWN_FIELDS:
            self._drop_read(events)

    def _drop_read(self, events: list[Any]) -> None:
        """Keep no text that is read, and hold back no more than a marker can take."""
        if len(self._buffer) - self._pos > _LONGEST_HELD:
            self._accumulate(events, self._buffer[self._pos :])
            self._pos = len(self._buffer)
        self._buffer = self._buffer[self._pos :]
        self._pos = 0
        self._body = ""

    def _accumulate(self, events: list[Any], text: str) -> None:
        """Take text of the open region. Without one it is content: nothing is lost."""
        if not text:
            return
        field = self._current
        if field is None:
            events.append(RegionEvent("text", "content", text))
            return
        if not self._opened:
            self._opened = True
            events.append(RegionEvent("open", field))
        self._body += text
        events.append(RegionEvent("text", field, text))

    def _open_explicit(self, events: list[Any], field: Any, m: Any) -> None:
        dropped: list[Any] = []
        super()._open_explicit(dropped, field, m)
        self._begin, self._marker = m.start(), m.end() - m.start()
        events.append(RegionEvent("open", field.name))

    def _close_current(self, events: list[Any]) -> None:
        field, body, opened = self._current, self._body, self._opened
        if field is None or not opened:
            self._reset_to_implicit()
            return
        if field in SHOWN_FIELDS:
            events.append(RegionEvent("close", field))
            self._reset_to_implicit()
            return
        whole = self._buffer[self._begin : self._pos]
        closed = len(whole) > self._marker + len(body)
        told: list[Any] = []
        try:
            super()._close_current(told)
        except Exception:  # noqa: BLE001  what a model writes may break any parser
            self._reset_to_implicit()
        kind: Any = "close" if told else "malformed"
        value = told[-1]["value"] if told else None
        events.append(RegionEvent(kind, field, whole, body, value, closed))


class _Bounded:
    """Bounds the search of a pattern of a model's own template."""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern

    def search(self, text: str, start: int, *, partial: bool = False) -> Any:
        """Search as the library does. Raises TimeoutError."""
        return self._pattern.search(text, start, partial=partial, timeout=_PATTERN_SECONDS)


def bounded(template: ResponseTemplate) -> ResponseTemplate:
    """Bound the time of a template's patterns, and look for no anchor: prefixes are cut already."""
    for field in template.fields.values():
        if field.open_re is not None and field.open_literals is None:
            field.open_re = _Bounded(field.open_re)
        if field.close_re is not None and field.close_literals is None:
            field.close_re = _Bounded(field.close_re)
    template.start_anchor_re = regex.compile(r"(?!)")
    return template
