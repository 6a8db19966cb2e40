"""Writes one line of the log for each request, without the cost of a logger on its way.

The event loop only keeps a tuple; the thread that writes the log makes lines of all that have come
in a moment, in one go: woken for each of them, it would take as much time as a tenth of a request.
Lines about strangers (no key) are limited, so that a flood of refused requests fills no disk.
"""

from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from threading import Event
from typing import Any

import msgspec

from bitinglip.telemetry.last_requests import UNSEEN, Row

STRANGERS_PER_SECOND = 20  #: lines; the next one says how many there were more
MOST_WAITING = 10_000  #: lines that may wait for a slow stderr
_PAUSE_SECONDS = 0.1  #: in which lines gather before they are written
_LONGEST_METHOD = 16  #: characters of what a client calls its method


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Is a line of the log, whose fields have this order."""

    event: str
    method: str
    endpoint: str
    status: int
    seconds: float
    request_id: str
    key: str | None = None
    model: str | None = None
    task: str | None = None
    trace_id: str | None = None
    suppressed: int = 0
    level: str
    logger: str
    timestamp: datetime


Render = Callable[[Sequence[Line]], str]
Put = Callable[[Any], None]


class RequestLines:
    """Takes ended requests, on the event loop.

    It is put into the log's queue in place of a record when lines have come, and made into their
    text by the queue's reader.
    """

    def __init__(self, put: Put, render: Render, on_dropped: Callable[[], None]) -> None:
        """``on_dropped`` is called for each line that is lost because too many wait."""
        self._put = put
        self._render = render
        self._on_dropped = on_dropped
        self._rows: deque[tuple[Row, str | None, int]] = deque()
        self._queued = False  #: the queue's reader will look for lines
        self._closing = Event()
        self._second = 0
        self._strangers = 0
        self._suppressed = 0

    def write(self, endpoint: str, row: Row, trace: str | None) -> None:
        """Write a line about a request, if it is none of a watcher's."""
        if endpoint in UNSEEN:
            return
        suppressed = 0
        if row[6] is None:  # without a key
            if not self._passes(int(row[0])):
                return
            suppressed, self._suppressed = self._suppressed, 0
        if len(self._rows) >= MOST_WAITING:
            self._on_dropped()
            return
        self._rows.append((row, trace, suppressed))
        if not self._queued:  # after the row is there: the reader looks in the other order
            self._queued = True
            self._put(self)

    def getMessage(self) -> str:  # noqa: N802  a handler of the library calls it by this name
        """Wait a moment for more lines; return all of them, in the thread that writes the log."""
        self._closing.wait(_PAUSE_SECONDS)
        self._queued = False
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        return self._render([_line(*each) for each in rows])

    def close(self) -> None:
        """Wait for no more lines from now on."""
        self._closing.set()

    def _passes(self, second: int) -> bool:
        if second != self._second:
            self._second, self._strangers = second, 0
        self._strangers += 1
        if self._strangers > STRANGERS_PER_SECOND:
            self._suppressed += 1
            return False
        return True


def _line(row: Row, trace: str | None, suppressed: int) -> Line:
    ended, request_id, method, endpoint, status, seconds, key_id, model, job_id = row
    return Line(
        event="request",
        method=method[:_LONGEST_METHOD],
        endpoint=endpoint,
        status=status,
        seconds=round(seconds, 6),
        request_id=request_id,
        key=key_id,
        model=model,
        task=job_id,
        trace_id=trace,
        suppressed=suppressed,
        level="info",
        logger="bitinglip.requests",
        timestamp=datetime.fromtimestamp(ended, UTC),
    )


class _Sink:
    lines: RequestLines | None = None  #: None: lines are off


_sink = _Sink()


def open_lines(lines: RequestLines | None) -> None:
    """Send the lines of this process's requests there; None ends that."""
    if _sink.lines is not None:
        _sink.lines.close()
    _sink.lines = lines


def write_line(endpoint: str, row: Row, trace: str | None) -> None:
    """Write a line about an ended request, where the settings ask for lines."""
    if _sink.lines is not None:
        _sink.lines.write(endpoint, row, trace)
