"""Filters system calls: what no worker needs is answered with EPERM, in all its threads.

An error and not a kill, because libraries try things and fall back. The program looks at numbers
and arguments in registers only, never at memory, which another thread could change meanwhile.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping

from workers.confinement.syscalls import ARCHITECTURES, FORBIDDEN, OF_PROCESSES, Architecture

_SET_MODE_FILTER = 1
_TSYNC = 1  #: all threads at once
_SPEC_ALLOW = 4  #: leave the processor's speculation as it is: turning it off slows all of torch

_LOAD = 0x20  #: the word at k of the call's data into the accumulator
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_ERROR = 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  #: offsets in the call's data
_X32 = 0x40000000  #: x86-64's second table of numbers, which is not in use

_CLONE_THREAD = 0x00010000
#: clone's flags for new namespaces: mount, cgroup, uts, ipc, user, pid, net.
_CLONE_NAMESPACES = 0x7E020000

_Instruction = tuple[int, int, int, int]  #: code, jump if true, jump if false, k


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def architecture() -> Architecture | None:
    """Return the numbers of this machine's system calls; None where they are not known."""
    return ARCHITECTURES.get(platform.machine()) if sys.platform == "linux" else None


def is_available() -> bool:
    """True if this kernel takes a filter from this process. Asks, and sets none."""
    arch = architecture()
    if arch is None:
        return False
    # A filter that is not there: EFAULT from a kernel that would have read it.
    _syscall(arch.seccomp, _SET_MODE_FILTER, 0, None)
    return ctypes.get_errno() == errno.EFAULT


def install(*, programs: bool, unix_sockets: bool) -> None:
    """Filter the calls of this process for good. Raises OSError.

    ``programs``: it may start programs, for a compiler. ``unix_sockets``: it may open those, for a
    driver's service. ``no_new_privs`` must be set.
    """
    arch = architecture()
    if arch is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    instructions = list(program(arch, os.getpid(), programs=programs, unix_sockets=unix_sockets))
    code = b"".join(struct.pack("=HBBI", *each) for each in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    given = _Program(len(instructions), ctypes.cast(buffer, ctypes.c_void_p))
    flags = _TSYNC | _SPEC_ALLOW
    result = _syscall(arch.seccomp, _SET_MODE_FILTER, flags, ctypes.byref(given))
    if result > 0:
        raise OSError(errno.ESRCH, f"thread {result} has a filter of its own")
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def program(
    arch: Architecture, pid: int, *, programs: bool, unix_sockets: bool
) -> Iterator[_Instruction]:
    """Yield the filter's instructions for a process of that id."""
    yield (_LOAD, 0, 0, _ARCHITECTURE)
    yield (_EQUAL, 1, 0, arch.audit)
    yield from _refuse()
    yield (_LOAD, 0, 0, _NUMBER)
    if arch.has_x32:
        yield (_AT_LEAST, 0, 1, _X32)
        yield from _refuse()
    for name in FORBIDDEN:
        yield from _when(arch.numbers, name, list(_refuse()))
    if not programs:
        for name in ("execve", "execveat", "fork", "vfork"):
            yield from _when(arch.numbers, name, list(_refuse()))
    # Its flags lie in memory; the C library falls back to clone, whose flags do not.
    yield from _when(arch.numbers, "clone3", list(_refuse(errno.ENOSYS)))
    yield from _when(arch.numbers, "clone", list(_clone(programs=programs)))
    families = [socket.AF_UNIX] if unix_sockets else []
    yield from _when(arch.numbers, "socket", list(_only(0, families)))
    yield from _when(arch.numbers, "socketpair", list(_only(0, [socket.AF_UNIX])))
    for name, (argument, own) in OF_PROCESSES.items():
        if own == "pid" and programs:
            continue  # it may signal the programs that it starts
        whose = {"pid": [pid], "self": [0], "both": [0, pid]}[own]
        yield from _when(arch.numbers, name, list(_only(argument, whose)))
    yield (_RETURN, 0, 0, _ALLOW)


def _when(
    numbers: Mapping[str, int], name: str, then: list[_Instruction]
) -> Iterator[_Instruction]:
    """Run some instructions for one call, where the architecture has it."""
    if name in numbers:
        yield (_EQUAL, 0, len(then), numbers[name])
        yield from then


def _refuse(number: int = errno.EPERM) -> Iterator[_Instruction]:
    yield (_RETURN, 0, 0, _ERROR | number)


def _only(argument: int, values: Iterable[int]) -> Iterator[_Instruction]:
    """Allow a call whose argument is one of some; refuse it otherwise."""
    yield (_LOAD, 0, 0, _ARGUMENT + 8 * argument)
    for value in values:
        yield (_EQUAL, 0, 1, value)
        yield (_RETURN, 0, 0, _ALLOW)
    yield from _refuse()


def _clone(*, programs: bool) -> Iterator[_Instruction]:
    """Allow threads; processes only for a compiler, and never a namespace."""
    yield (_LOAD, 0, 0, _ARGUMENT)
    yield (_ANY_BIT, 0, 1, _CLONE_NAMESPACES)
    yield from _refuse()
    if not programs:
        yield (_ANY_BIT, 1, 0, _CLONE_THREAD)
        yield from _refuse()
    yield (_RETURN, 0, 0, _ALLOW)


def _syscall(number: int, operation: int, flags: int, argument: object) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    return int(library.syscall(ctypes.c_long(number), operation, flags, argument))
