"""Captures what is logged: of one module, or all that the standard library's loggers are told."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import structlog
from structlog.testing import LogCapture


class CaughtLogs(logging.Handler):
    """Keeps the records of all loggers.

    It is ours as pytest's own, which conftest.py leaves out, goes through every logger of every
    library that is imported, six times a test.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))  # with the traceback; it sets ``message`` too
        self.records.append(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  the base's name
        raise

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    @property
    def messages(self) -> list[str]:
        return [each.getMessage() for each in self.records]

    @contextmanager
    def at_level(self, level: int) -> Iterator[None]:
        """Let the root logger pass on what is of this level, and above."""
        before = logging.root.level
        logging.root.setLevel(level)
        try:
            yield
        finally:
            logging.root.setLevel(before)


@contextmanager
def caught_logs() -> Iterator[CaughtLogs]:
    """Yield the records of all loggers, also of those that keep theirs from the root."""
    known = list(logging.root.manager.loggerDict.values())
    loggers = [each for each in known if isinstance(each, logging.Logger) and not each.propagate]
    caught = CaughtLogs()
    for each in (logging.root, *loggers):
        each.addHandler(caught)
    try:
        yield caught
    finally:
        for each in (logging.root, *loggers):
            each.removeHandler(caught)


def capture_log(patch: pytest.MonkeyPatch, module: ModuleType) -> LogCapture:
    """Return what takes the entries of a module's ``log``, of every level."""
    taken = LogCapture()
    everything = structlog.make_filtering_bound_logger(0)
    logger = structlog.wrap_logger(None, processors=[taken], wrapper_class=everything)
    patch.setattr(module, "log", logger)
    return taken
