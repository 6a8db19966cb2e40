"""Writes one line of the log for each request, without the cost of a logger on its way.

The event loop only hands over a tuple; the thread that writes the log makes the line of it. Lines
about strangers (no key) are limited, so that a flood of refused requests fills no disk.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from bitinglip.telemetry.last_requests import UNSEEN, LastRequest, Row

STRANGERS_PER_SECOND = 20  #: lines; the next one says how many there were more
_LONGEST_METHOD = 16  #: characters of what a client calls its method
Render = Callable[[dict[str, Any]], str]
Put = Callable[[Any], None]


class Line:
    """Is put into the log's queue in place of a record, and made into text by its reader."""

    __slots__ = ("_render", "_row", "_suppressed", "_trace")

    def __init__(self, row: Row, trace: str | None, suppressed: int, render: Render) -> None:
        self._row, self._trace = row, trace
        self._suppressed, self._render = suppressed, render

    def getMessage(self) -> str:  # noqa: N802  a handler of the library calls it by this name
        row = LastRequest(*self._row)
        event: dict[str, Any] = {
            "event": "request",
            "method": row.method[:_LONGEST_METHOD],
            "endpoint": row.endpoint,
            "status": row.status,
            "seconds": round(row.seconds, 6),
            "request_id": row.request_id,
        }
        more = {
            "key": row.key_id,
            "model": row.model,
            "task": row.job_id,
            "trace_id": self._trace,
            "suppressed": self._suppressed or None,
        }
        event |= {name: value for name, value in more.items() if value is not None}
        moment = datetime.fromtimestamp(row.ended, UTC).isoformat().replace("+00:00", "Z")
        event |= {"level": "info", "logger": "bitinglip.requests", "timestamp": moment}
        return self._render(event)


class RequestLines:
    """Takes ended requests, on the event loop."""

    def __init__(self, put: Put, render: Render) -> None:
        self._put = put
        self._render = render
        self._second = 0
        self._strangers = 0
        self._suppressed = 0

    def write(self, endpoint: str, row: Row, trace: str | None) -> None:
        """Write a line about a request, if it is none of a watcher's."""
        if endpoint in UNSEEN:
            return
        suppressed = 0
        ended, key_id = row[0], row[6]
        if key_id is None:
            if not self._passes(int(ended)):
                return
            suppressed, self._suppressed = self._suppressed, 0
        self._put(Line(row, trace, suppressed, self._render))

    def _passes(self, second: int) -> bool:
        if second != self._second:
            self._second, self._strangers = second, 0
        self._strangers += 1
        if self._strangers > STRANGERS_PER_SECOND:
            self._suppressed += 1
            return False
        return True


class _Sink:
    lines: RequestLines | None = None  #: None: lines are off


_sink = _Sink()


def open_lines(lines: RequestLines | None) -> None:
    """Send the lines of this process's requests there; None ends that."""
    _sink.lines = lines


def write_line(endpoint: str, row: Row, trace: str | None) -> None:
    """Write a line about an ended request, where the settings ask for lines."""
    if _sink.lines is not None:
        _sink.lines.write(endpoint, row, trace)
