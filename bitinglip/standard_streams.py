"""Opens standard input, output and error, which may be closed, or whose reader may die.

A server started by a pager, a terminal that was closed or a broken log reader goes on without them.
"""

import os
import sys
from contextlib import suppress


def secure() -> None:
    """Put the null device where a stream is closed, before a file or a socket gets its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def say(text: str) -> None:
    """Print to standard output, if it still has a reader."""
    with suppress(OSError, ValueError):
        sys.stdout.write(text)
        sys.stdout.flush()


def columns() -> int | None:
    """Return the width of the terminal that standard output is; None if it is none."""
    with suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stdout.fileno()).columns
    return None


def abandon_broken() -> None:
    """Throw away what cannot be written, so that the interpreter does not end with an error."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)
