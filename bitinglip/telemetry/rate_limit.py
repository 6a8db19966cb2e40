"""Limits equal log lines, so that a client that is refused a thousand times writes a few lines."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

LINES_PER_SECOND = 20  #: of one message
_MAX_MESSAGES = 1024  #: remembered at once
_EXEMPT = "workers."  #: loggers that pass on lines of workers and limit those themselves


@dataclass(slots=True)
class _Count:
    second: float
    passed: int = 0
    suppressed: int = 0


class RepeatLimit(logging.Filter):
    """Passes at most 20 lines a second of one message of one logger, and counts the others.

    The next line that passes tells the count, as ``suppressed``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._counts: dict[tuple[str, str], _Count] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith(_EXEMPT):
            return True
        now = self._clock()
        count = self._count((record.name, _message(record)), now)
        if now - count.second >= 1.0:
            count.second, count.passed = now, 0
        if count.passed >= LINES_PER_SECOND:
            count.suppressed += 1
            return False
        count.passed += 1
        if count.suppressed:
            _tell(record, count.suppressed)
            count.suppressed = 0
        return True

    def _count(self, key: tuple[str, str], now: float) -> _Count:
        found = self._counts.get(key)
        if found is None:
            if len(self._counts) >= _MAX_MESSAGES:
                self._counts.clear()
            found = self._counts[key] = _Count(now)
        return found


def _message(record: logging.LogRecord) -> str:
    """Return the message without its arguments; structlog's is in a dictionary."""
    if isinstance(record.msg, dict):
        return str(record.msg.get("event"))[:200]
    return str(record.msg)[:200]


def _tell(record: logging.LogRecord, suppressed: int) -> None:
    if isinstance(record.msg, dict):
        record.msg["suppressed"] = suppressed
    else:
        record.msg = f"{record.msg!s} ({suppressed} more lines like it were suppressed)"
