"""Writes jobs to a worker from the gateway's end of the pipe; never blocks.

``multiprocessing`` has a queue for this, with a semaphore in memory that it shares with the worker;
a worker that takes the semaphore stops the gateway's event loop.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable

from workers.framing import command_frame


class JobPipe:
    """Writes what the worker has room for; the rest is kept until it has, or has ended."""

    def __init__(self, fd: int, on_broken: Callable[[], None]) -> None:
        """``on_broken`` is called when the worker has closed its end."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_broken = on_broken
        self._broken = False
        self._left: deque[memoryview] = deque()
        self._writing: asyncio.AbstractEventLoop | None = None

    def write(self, command: bytes) -> None:
        if self._broken:
            return
        self._left.append(memoryview(command_frame(command)))
        if self._writing is None:
            self._write_some()
            if self._left:
                self._writing = asyncio.get_running_loop()
                self._writing.add_writer(self._fd, self._write_some)

    def _write_some(self) -> None:
        """Write what one call takes: others on the event loop have their turn in between."""
        try:
            with contextlib.suppress(BlockingIOError):
                part = self._left[0][os.write(self._fd, self._left[0]) :]
                if part:
                    self._left[0] = part
                else:
                    self._left.popleft()
        except OSError:
            self._broken = True
            self._left.clear()
            self._on_broken()
        if not self._left:
            self._stop_writing()

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.remove_writer(self._fd)
            self._writing = None

    def close(self) -> None:
        self._stop_writing()
        self._left.clear()
        os.close(self._fd)
