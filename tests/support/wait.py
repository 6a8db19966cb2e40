"""Waits for a condition that nothing announces."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

_POLL_SECONDS = 0.02
_PATIENCE = 60.0  #: seconds: a machine of the checks may be busy, and only failures wait so long


def eventually(condition: Any, seconds: float = _PATIENCE) -> None:
    """Wait until a condition holds. Raises AssertionError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(_POLL_SECONDS)


async def until(condition: Callable[[], object], seconds: float = _PATIENCE) -> None:
    """Wait on the event loop until a condition holds. Raises TimeoutError if it does not."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  nothing announces it
            await asyncio.sleep(_POLL_SECONDS / 2)
