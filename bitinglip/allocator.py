"""Sets glibc's allocator up for a process that handles large bodies now and then."""

import ctypes
from collections.abc import Mapping

#: parameters of mallopt(3), and the bytes from which an allocation is a mapping of its own, which
#: goes back to the system when it is freed
_MMAP_THRESHOLD, _MMAP_BYTES = -3, 256 * 1024
_ARENA_MAX, _ARENAS = -8, 2  #: heaps; by default each thread may have its own
_OPERATORS = ("MALLOC_", "GLIBC_TUNABLES")


def return_large_blocks(environment: Mapping[str, str]) -> bool:
    """Let freed memory of large bodies go back to the system; returns whether that was set.

    By default glibc raises the size from which it maps to that of the largest block that was freed
    (up to 32 MB), so that bodies come out of its heaps, and small objects between them keep these
    from shrinking. Settings of the operator's environment stay as they are, and other C libraries
    have no such parameters.
    """
    if any(name.startswith(_OPERATORS) for name in environment):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)) and bool(mallopt(_ARENA_MAX, _ARENAS))
