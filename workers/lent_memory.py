"""Takes over, in a worker, the RAM that the gateway lends it; see ``kept_memory``."""

import mmap
import os
import socket

_lent: list[int] = []  #: one descriptor at most


def receive(lending: int | None) -> None:
    """Take over what has been lent through a socket's descriptor, and close it.

    To be called before this process is confined, after the message that says what to load.
    """
    if lending is None:
        return
    with socket.socket(fileno=lending) as source:
        source.setblocking(False)
        try:
            _, descriptors, _, _ = socket.recv_fds(source, 1, 1)
        except OSError:  # nothing was lent
            return
    _lent.extend(descriptors)


def memory(size: int) -> mmap.mmap:
    """Return so much memory: what was lent, else memory of this process alone. Raises OSError."""
    while _lent:
        fd = _lent.pop()
        try:
            if os.fstat(fd).st_size == size:
                return mmap.mmap(fd, size)
        finally:
            os.close(fd)
    return mmap.mmap(-1, size)
