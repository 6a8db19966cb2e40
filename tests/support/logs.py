"""Captures the log of one module, whatever earlier tests have set up for the process's own."""

from types import ModuleType

import pytest
import structlog
from structlog.testing import LogCapture


def capture_log(patch: pytest.MonkeyPatch, module: ModuleType) -> LogCapture:
    """Return what takes the entries of a module's ``log``, of every level."""
    taken = LogCapture()
    everything = structlog.make_filtering_bound_logger(0)
    logger = structlog.wrap_logger(None, processors=[taken], wrapper_class=everything)
    patch.setattr(module, "log", logger)
    return taken
