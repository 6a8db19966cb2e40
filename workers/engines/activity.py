"""Tells the gateway of work that may keep an engine silent for minutes, while it goes on.

Compiling, and the first use of kernels, which are read, built and chosen then, are no signs that a
worker hangs. An engine serves one process, so what it says goes by one way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workers.protocol import Activity, Working

_tell: Callable[[Working], None] = lambda _: None  # noqa: E731  no listener yet


def connect(tell: Callable[[Working], None]) -> None:
    """Have what engines are busy with told by this function, at once."""
    global _tell  # noqa: PLW0603  the process has one engine
    _tell = tell


@contextmanager
def busy_with(activity: Activity) -> Iterator[None]:
    """Tell what the engine does inside, and that it is over."""
    _tell(Working(activity))
    try:
        yield
    finally:
        _tell(Working(None))


class FirstUse:
    """Tells steps of each kind, as the caller names them, until one of that kind is done."""

    def __init__(self, activity: Activity = "warmup") -> None:
        self.activity = activity
        self._done: set[object] = set()

    @contextmanager
    def of(self, kind: object = None) -> Iterator[None]:
        """Compute a step of that kind inside."""
        if kind in self._done:
            yield
            return
        with busy_with(self.activity):
            yield

    def done(self, kind: object = None) -> None:
        """Note that all has been used that steps of that kind need."""
        self._done.add(kind)
