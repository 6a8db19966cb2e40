"""Reads the files of a load's weights in sequence while the load does other things.

Libraries map the files and fetch small pieces in the order of their tensors, which is several times
slower than a disk can be. What is in the system's cache already is left alone.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_PIECE = 32 << 20  #: bytes
_SAMPLE = 256 << 10  #: bytes of each piece that tell whether it is cached
_CACHED_RATE = 2e9  #: bytes a second that only the system's cache reaches in such a sample


@contextmanager
def reading_ahead(files: Sequence[Path], read: Callable[[int], None]) -> Iterator[None]:
    """Read files in a thread of its own for as long as the context lasts.

    ``read`` is called there with the bytes of each piece that the system has in RAM then. A file
    that cannot be read is passed over: who needs it will say so.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_read_all, args=(files, read, ended), name="read ahead")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _read_all(files: Sequence[Path], read: Callable[[int], None], ended: threading.Event) -> None:
    buffer = memoryview(bytearray(_PIECE))
    for path in files:
        with suppress(OSError):
            _read_one(path, buffer, read, ended)


def _read_one(
    path: Path, buffer: memoryview, read: Callable[[int], None], ended: threading.Event
) -> None:
    with path.open("rb", buffering=0) as file:
        at, size = 0, path.stat().st_size
        while at < size and not ended.is_set():
            began = time.perf_counter()
            count = file.readinto(buffer[:_SAMPLE])
            if not count:
                return
            if count < _CACHED_RATE * (time.perf_counter() - began):
                while count < min(_PIECE, size - at) and not ended.is_set():
                    count += (more := file.readinto(buffer[: _PIECE - count])) or 0
                    if not more:
                        return
            piece = min(_PIECE, size - at)
            at = file.seek(at + piece)
            read(piece)
