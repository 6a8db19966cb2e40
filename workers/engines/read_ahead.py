"""Reads the files of a load's weights in sequence while the load does other things.

Libraries map the files and fetch small pieces in the order of their tensors, which is several times
slower than a disk can be. What is in the system's cache already is left alone.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

_PIECE = 32 << 20  #: bytes
_SAMPLE = 256 << 10  #: bytes of each piece that tell whether it is cached
_PAUSE = 0.05  #: seconds between two looks at whether more may be read
_UNKNOWN_ROOM = 2 << 30  #: bytes, where the system does not tell
_CACHED_RATE = 2e9  #: bytes a second that only the system's cache reaches in such a sample


@contextmanager
def reading_ahead(
    files: Sequence[Path],
    read: Callable[[int], None],
    may_read: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Read files in a thread of its own for as long as the context lasts.

    ``read`` is called there with the bytes of each piece that the system has in RAM then; while
    ``may_read`` is false, it waits. A file that cannot be read is passed over: the load will say
    so.
    """
    ended = threading.Event()
    reader = _Reader(read, may_read, ended)
    thread = threading.Thread(target=reader.run, args=(files,), name="read ahead")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def room() -> int:
    """Return the bytes of RAM that the system can give to its cache of files."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(available.split()[1])
    return _UNKNOWN_ROOM


class _Reader:
    def __init__(
        self, read: Callable[[int], None], may_read: Callable[[], bool], ended: threading.Event
    ) -> None:
        self._read = read
        self._may_read = may_read
        self._ended = ended
        self._buffer = memoryview(bytearray(_PIECE))

    def run(self, files: Sequence[Path]) -> None:
        for path in files:
            with suppress(OSError):
                self._read_file(path)

    def _read_file(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            for at in range(0, size, _PIECE):
                while not self._may_read() and not self._ended.wait(_PAUSE):
                    pass
                if self._ended.is_set():
                    return
                file.seek(at)
                piece = min(_PIECE, size - at)
                self._read_piece(file, piece)
                self._read(piece)

    def _read_piece(self, file: FileIO, size: int) -> None:
        """Read a piece, or its beginning only if that shows that it is cached."""
        began = time.perf_counter()
        count = file.readinto(self._buffer[: min(_SAMPLE, size)]) or 0
        if count >= _CACHED_RATE * (time.perf_counter() - began):
            return
        while 0 < count < size and not self._ended.is_set():
            more = file.readinto(self._buffer[: size - count]) or 0
            if not more:
                return
            count += more
