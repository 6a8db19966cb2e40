"""The logs: one line for each thing that happened, on stderr, by a thread of their own.

Everything goes this way, structlog's loggers and the standard library's (uvicorn's too): so a key
is masked and a control character escaped in all of it, tracebacks included.
"""

import json
import logging
import re
import sys
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from bitinglip.settings import Logging
from bitinglip.telemetry.rate_limit import RepeatLimit
from bitinglip.telemetry.redaction import mask

#: lines that may wait for a slow stderr; more are dropped and counted
_MAX_WAITING = 10_000
#: loggers that speak of every packet below this level
_CHATTY = ("aiosqlite", "asyncio", "httpcore", "httpx", "sqlalchemy")
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")

# C0, DEL, C1, line separators, and the marks that turn the direction of text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def configure(settings: Logging, stream: TextIO | None = None) -> Callable[[], None]:
    """Sends all logs to ``stream`` (stderr); the answer stops that, after writing what waits."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    handler = _Enqueue(SimpleQueue())
    handler.setFormatter(_formatter(settings.format, stream))
    handler.addFilter(RepeatLimit())
    listener = QueueListener(handler.queue, _plain(stream))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    _route_others(level)
    _configure_structlog(level)
    logging.captureWarnings(capture=True)
    listener.start()

    def stop() -> None:
        logging.captureWarnings(capture=False)
        root.removeHandler(handler)
        root.setLevel(before)
        listener.stop()

    return stop


class _Enqueue(QueueHandler):
    """Formats in the thread that logs, where the request's context is, and writes in another."""

    queue: "SimpleQueue[Any]"
    dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() >= _MAX_WAITING:
            self.dropped += 1
            return
        if self.dropped:
            dropped, self.dropped = self.dropped, 0
            logging.getLogger(__name__).warning("%d log lines were dropped", dropped)
        self.queue.put_nowait(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """A record that cannot be formatted: say which, and never show its arguments."""
        record.msg = f"a log call is broken: {record.pathname}:{record.lineno}"
        record.args, record.exc_info = None, None
        self.enqueue(self.prepare(record))


def _plain(stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def _formatter(style: str, stream: TextIO) -> logging.Formatter:
    console = style == "console" or (style == "auto" and stream.isatty())
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
    """All but ASCII is escaped by JSON itself, except DEL."""
    return json.dumps(event, default=repr).replace("\x7f", "\\u007f")


def _as_text(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """One line for a person, then the traceback, indented so that no line of it poses as ours."""
    moment = str(event.pop("timestamp", ""))[11:19]
    level = str(event.pop("level", ""))
    what = _escaped(event.pop("event", ""))
    event.pop("logger", None)
    trace = str(event.pop("exception", ""))
    extra = "".join(f"  {_escaped(key)}={_escaped(value)}" for key, value in event.items())
    lines = [f"{moment} {level:<8}{what}{extra}"]
    lines += (f"    {_escaped(line)}" for line in trace.split("\n") if trace)
    return "\n".join(lines)


def _escaped(value: object) -> str:
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))


def _masked(_logger: WrappedLogger, _method: str, line: Any) -> str:
    return mask(line)
