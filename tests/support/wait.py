"""Waits for a condition that nothing announces."""

import time
from typing import Any


def eventually(condition: Any, seconds: float = 10) -> None:
    """Wait until it holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
