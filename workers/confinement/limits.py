"""Give up what any Linux process can give up by itself: privileges, core dumps, room for files."""

import ctypes
import errno
import os
import resource
import sys

_SET_DUMPABLE, _SET_NO_NEW_PRIVS = 4, 38  #: operations of prctl
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION = 0x20080522
_FILE_BYTES = 1 << 30  #: more than any picture or sound that the limits of requests allow


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def no_new_privileges() -> None:
    """Let no program that this process starts have more rights than it. Raises OSError."""
    _prctl(_SET_NO_NEW_PRIVS, 1)


def not_dumpable() -> None:
    """Keep this process's memory and environment from others of its user. Raises OSError.

    Only root may read its /proc/PID/mem and environ then, or attach a debugger.
    """
    _prctl(_SET_DUMPABLE, 0)


def no_core_dumps() -> None:
    """Write no core file: it would hold the model's and the clients' data."""
    _lower(resource.RLIMIT_CORE, 0)


def bounded_files() -> None:
    """Bound the size of one file; a write beyond it raises OSError with EFBIG."""
    _lower(resource.RLIMIT_FSIZE, _FILE_BYTES)


def bounded_memory(size: int) -> None:
    """Bound the writable memory; more raises MemoryError, or torch's error of that kind.

    Not the address space, of which libraries reserve much more than they use.
    """
    _lower(resource.RLIMIT_DATA, size)


def drop_capabilities() -> None:
    """Give up the rights of root, but for reading what belongs to others: files of models may.

    Raises OSError.
    """
    _on_linux()
    kept = 1 << _CAP_DAC_READ_SEARCH
    header = _CapabilityHeader(_CAPABILITY_VERSION, 0)
    data = (_CapabilityData * 2)()
    library = ctypes.CDLL(None, use_errno=True)
    if library.capget(ctypes.byref(header), data) < 0:
        raise _error()
    data[0].effective &= kept
    data[0].permitted &= kept
    data[0].inheritable = 0
    data[1].effective = data[1].permitted = data[1].inheritable = 0
    if library.capset(ctypes.byref(header), data) < 0:
        raise _error()


def _lower(limit: int, value: int) -> None:
    _, most = resource.getrlimit(limit)
    if most == resource.RLIM_INFINITY or value < most:
        resource.setrlimit(limit, (value, value))


def _prctl(operation: int, value: int) -> None:
    _on_linux()
    library = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if library.prctl(operation, ctypes.c_ulong(value), zero, zero, zero) < 0:
        raise _error()


def _on_linux() -> None:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
