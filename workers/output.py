"""Passes a worker's standard output and error on line by line, and keeps the last lines."""

import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator

_READ_BYTES = 1 << 16
_LAST_BYTES = 1 << 20  #: that are read of a pipe whose writer has ended
MOST_LINES = 40
MOST_CHARACTERS = 400  #: of one line
_LINES_PER_SECOND = 100
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Output:
    """Keeps the lines of one worker. ``pass_on`` gets each, unless there are too
    many in a second."""

    def __init__(
        self, pass_on: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pass_on = pass_on
        self._clock = clock
        self._tail: deque[str] = deque(maxlen=MOST_LINES)
        self._begun = b""  #: of a line whose end has not come
        self._second = 0.0
        self._passed = 0
        self._left_out = 0

    @property
    def tail(self) -> list[str]:
        """Return the last lines, the oldest first."""
        return list(self._tail)

    def feed(self, data: bytes) -> None:
        *lines, rest = (self._begun + data).split(b"\n")
        self._begun = rest[-4 * MOST_CHARACTERS :]  # a line without an end takes no memory
        for line in lines:
            self._add(line)

    def end(self) -> None:
        """Take the rest as a line: nothing more comes."""
        if self._begun:
            self._add(self._begun)
            self._begun = b""
        self._report_dropped()

    def _add(self, raw: bytes) -> None:
        # A progress bar writes over its line: what can be seen in the end is the last of it.
        text = raw.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
        line = _CONTROL.sub("", text).rstrip()[:MOST_CHARACTERS]
        if not line:
            return
        self._tail.append(line)
        now = self._clock()
        if now - self._second >= 1.0:
            self._report_dropped()
            self._second, self._passed = now, 0
        if self._passed < _LINES_PER_SECOND:
            self._passed += 1
            self._pass_on(line)
        else:
            self._left_out += 1

    def _report_dropped(self) -> None:
        if self._left_out:
            self._pass_on(f"... {self._left_out} lines left out")
            self._left_out = 0


def last_bytes(fd: int) -> Iterator[bytes]:
    """Read what is left in a non-blocking pipe, but no more than a pipe holds: what the worker has
    left behind may go on to write."""
    left = _LAST_BYTES
    with contextlib.suppress(BlockingIOError):
        while left > 0 and (data := os.read(fd, _READ_BYTES)):
            left -= len(data)
            yield data
