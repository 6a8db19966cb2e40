"""Tells how far a load is, by the bytes of its weights."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.engines.base import Refused
from workers.engines.read_ahead import reading_ahead, room
from workers.engines.weight_files import weight_files

_WEIGHTS = 0.9  #: the part of a load that its weights are; then come its cache and its trial
_STEP = 0.005  #: by which it has grown when it is told again


class WeightProgress:
    """Counts bytes of weights that were read, and that lie where they are computed."""

    def __init__(self, total: int, tell: Callable[[float], None]) -> None:
        """``total``: bytes of the files; ``tell`` gets fractions of the load, from any thread."""
        self._total = total
        self._tell = tell
        self._read = self._placed = 0
        self._told = 0.0
        self._lock = threading.Lock()

    def read(self, count: int) -> None:
        """Count bytes of the files that have come to RAM."""
        with self._lock:
            self._read = min(self._total, self._read + count)
            self._say(self._share)

    def placed(self, count: int) -> None:
        """Count bytes of the files that lie in the memory and form that computes them."""
        with self._lock:
            self._placed = min(self._total, self._placed + count)
            self._say(self._share)

    def reach(self, fraction: float) -> None:
        """Tell that a stage after the weights is done."""
        with self._lock:
            self._say(fraction)

    @property
    def unplaced(self) -> int:
        """Return the bytes that were read and not placed yet."""
        return self._read - self._placed

    @property
    def _share(self) -> float:
        return _WEIGHTS * (self._read + self._placed) / (2 * self._total) if self._total else 0.0

    def _say(self, fraction: float) -> None:
        if fraction >= self._told + _STEP or (fraction > self._told and fraction >= _WEIGHTS):
            self._told = fraction
            self._tell(fraction)


@contextmanager
def weights_read(folder: Path, tell: Callable[[float], None]) -> Iterator[WeightProgress]:
    """Read a folder's weights ahead of a load, and give what counts them."""
    try:
        files = weight_files(folder)
    except Refused:  # the load will say so, with more to it
        files = []
    progress = WeightProgress(sum(path.stat().st_size for path in files), tell)
    # More would push out of the system's cache what the load has not come to.
    most = room() // 2
    with reading_ahead(files, progress.read, lambda: progress.unplaced < most):
        yield progress
