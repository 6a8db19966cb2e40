"""Tells the running event loop without the system call that asyncio makes each time."""

import asyncio
import threading


class _OfThread(threading.local):
    loop: asyncio.AbstractEventLoop | None = None


_last = _OfThread()


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop that runs in this thread. Raises RuntimeError if there is none."""
    loop = _last.loop
    if loop is None or not loop.is_running():  # the first one, or the next of a test
        loop = _last.loop = asyncio.get_running_loop()
    return loop
