"""Bounds what this process takes of the memory while it reads what others send."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MORE_BYTES = 2 << 30  #: far more than the listing of as many files as a model may have


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let the process take two gigabytes more than it has, and raise MemoryError beyond.

    For clients that read an answer as a whole, whatever its length. Where the system does not
    say what the process has, there is no bound.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    has = _data_bytes()
    if has is None or soft != resource.RLIM_INFINITY:
        yield
        return
    most = has + _MORE_BYTES
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int | None:
    """Return the bytes that count for the limit, as the system has them."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = (line.split()[1] for line in lines if line.startswith("VmData:"))
    return next((int(each) * 1024 for each in kilobytes), None)
