"""Writes the logs: one line for each event, on stderr, by a thread of their own.

Everything goes this way, structlog's loggers and the standard library's (uvicorn's too): so a key
is masked and a control character escaped in all of it, tracebacks included.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from bitinglip.settings import Logging
from bitinglip.telemetry.rate_limit import RepeatLimit
from bitinglip.telemetry.redaction import escape, mask
from bitinglip.telemetry.request_lines import Line, RequestLines, open_lines

#: lines that may wait for a slow stderr; more are dropped and counted
_MAX_WAITING = 10_000
_STOP_SECONDS = 3.0  #: for what waits, when the logging ends
#: loggers that speak of every packet below this level
_CHATTY = ("aiohttp", "aiosqlite", "alembic.runtime.plugins", "asyncio", "sqlalchemy")
_encoder = msgspec.json.Encoder()
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")

_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def configure(settings: Logging, stream: TextIO | None = None) -> Callable[[], None]:
    """Sends all logs to ``stream`` (stderr); the answer stops that, after writing what waits.

    A stream that takes nothing delays the stop by a few seconds at most.
    """
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    handler = _Enqueue(SimpleQueue())
    formatter = _formatter(settings.format, stream)
    handler.setFormatter(formatter)
    handler.addFilter(RepeatLimit())
    listener = _Listener(handler.queue, _Writer(stream, formatter))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    _route_others(level)
    _configure_structlog(level)
    logging.captureWarnings(capture=True)
    listener.start()
    if settings.requests and level <= logging.INFO:
        render = partial(_rendered, _for_a_person(settings.format, stream))
        open_lines(RequestLines(handler.queue.put_nowait, render, _dropped.count))

    def stop() -> None:
        open_lines(None)
        logging.captureWarnings(capture=False)
        root.removeHandler(handler)
        root.setLevel(before)
        listener.stop()

    return stop


class _Dropped:
    """Lines that were lost: in all, and since it was last said."""

    def __init__(self) -> None:
        self.total = 0
        self.unsaid = 0

    def count(self, lines: int = 1) -> None:
        self.total += lines
        self.unsaid += lines


_dropped = _Dropped()


def dropped_lines() -> int:
    """Count the log lines that this process could not write."""
    return _dropped.total


class _Enqueue(QueueHandler):
    """Formats in the thread that logs, where the request's context is, and writes in another."""

    queue: "SimpleQueue[Any]"

    def enqueue(self, record: Any) -> None:
        if self.queue.qsize() >= _MAX_WAITING:
            _dropped.count()
            return
        self.queue.put_nowait(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Say which record cannot be formatted, and never show its arguments."""
        record.msg = f"a log call is broken: {record.pathname}:{record.lineno}"
        record.args, record.exc_info = None, None
        self.enqueue(self.prepare(record))


class _Listener(QueueListener):
    """Writes in a thread of its own; ``stop`` waits for it only a while: its reader
    may be stuck."""

    def stop(self) -> None:
        if self._thread is not None:
            self.enqueue_sentinel()
            self._thread.join(_STOP_SECONDS)
            self._thread = None


class _Writer(logging.Handler):
    """Writes lines past the stream's buffer, which a stuck thread would leave locked at the exit.

    A reader that died costs lines, which are counted and told once one comes back.
    """

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self._stream = stream
        self._notices = formatter
        try:
            self._number: int | None = stream.fileno()
        except (OSError, ValueError):  # a stream in memory
            self._number = None

    def createLock(self) -> None:  # noqa: N802 - logging's own name
        """Take none: one thread writes, and the exit would wait for a lock that it holds."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        text = ""
        try:
            # First of all: lines of requests that are not asked for now would never be again.
            text = record.getMessage()
            if _dropped.unsaid:
                self._write(self._notice())
                _dropped.unsaid = 0
            if text:
                self._write(f"{text}\n")
        except (OSError, ValueError):
            _dropped.count(1 + text.count("\n"))

    def _notice(self) -> str:
        text = f"{_dropped.unsaid} log lines were dropped"
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None)
        return f"{self._notices.format(record)}\n"

    def _write(self, line: str) -> None:
        if self._number is None:
            self._stream.write(line)
            self._stream.flush()
            return
        data = memoryview(line.encode("utf-8", "backslashreplace"))
        while data:
            data = data[os.write(self._number, data) :]


def _for_a_person(style: str, stream: TextIO) -> bool:
    return style == "console" or (style == "auto" and stream.isatty())


def _rendered(console: bool, lines: Iterable[Line]) -> str:
    """Make the text of lines that no logger has seen."""
    if not console:
        quick = _encoder.encode_lines(lines).rstrip()
        if quick.isascii() and b"\x7f" not in quick:
            return mask(quick.decode())
    write = _as_text if console else _as_json
    return "\n".join([mask(write(None, "", msgspec.to_builtins(line))) for line in lines])


def _formatter(style: str, stream: TextIO) -> logging.Formatter:
    console = _for_a_person(style, stream)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _as_text if console else _as_json,
            _masked,
        ],
    )


def _configure_structlog(level: int) -> None:
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _route_others(level: int) -> None:
    for name in _UVICORN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _as_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Encode as JSON in ASCII; DEL, which JSON leaves, is escaped too."""
    return json.dumps(event, default=repr).replace("\x7f", "\\u007f")


def _as_text(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Write one line for a person, then the traceback, indented so that no line of it looks like
    ours."""
    moment = str(event.pop("timestamp", ""))[11:19]
    level = str(event.pop("level", ""))
    what = escape(str(event.pop("event", "")))
    event.pop("logger", None)
    trace = str(event.pop("exception", ""))
    extra = "".join(f"  {escape(str(key))}={escape(str(value))}" for key, value in event.items())
    lines = [f"{moment} {level:<8}{what}{extra}"]
    lines += (f"    {escape(line)}" for line in trace.split("\n") if trace)
    return "\n".join(lines)


def _masked(_logger: WrappedLogger, _method: str, line: Any) -> str:
    return mask(line)
