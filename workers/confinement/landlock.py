"""Applies Landlock: rules for files, TCP and signals that a process takes upon itself for good.

What no rule allows is refused with EACCES or EPERM. The kernel's version (its ABI) decides what
can be ruled at all; ``Ruleset`` leaves out what it does not know.
"""

import ctypes
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  #: the same on all architectures
_VERSION = 1  #: flag of the first: ask for the ABI
_PATH_BENEATH = 1
_TCP = 0b11  #: bind and connect
_SCOPES = 0b11  #: abstract Unix sockets and signals

TRUNCATE_ABI = 3
TCP_ABI = 4
SCOPES_ABI = 6


class Access(IntFlag):
    """Names what may be done with a file, or beneath a folder."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Access.READ_FILE | Access.READ_DIR
WRITE = READ | Access.WRITE_FILE | Access.TRUNCATE
#: A folder of the process's own: everything but devices, sockets, pipes and links.
OWN = WRITE | Access.MAKE_REG | Access.MAKE_DIR
OWN |= Access.REMOVE_FILE | Access.REMOVE_DIR | Access.REFER

_OF_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE
_OF_FILES |= Access.TRUNCATE | Access.IOCTL_DEV
_OLDEST = Access((1 << 13) - 1)
_SINCE = {2: Access.REFER, TRUNCATE_ABI: Access.TRUNCATE, 5: Access.IOCTL_DEV}


@dataclass(frozen=True, slots=True)
class Rule:
    """Names a path that exists, and what is allowed beneath it."""

    path: str
    access: Access


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """Return the version of the kernel's Landlock; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    try:
        return _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    except OSError:
        return 0


def handled(version: int) -> Access:
    """Return the rights that a kernel of this version can rule."""
    found = _OLDEST
    for since, right in _SINCE.items():
        if version >= since:
            found |= right
    return found


def restrict(rules: Iterable[Rule], version: int) -> list[int]:
    """Allow the calling thread, and the threads and processes that it starts, what the rules say.

    Gives descriptors that must stay open: a rule is about an inode, and /proc makes a new one when
    the kernel has dropped the name of the old one. ``no_new_privs`` must be set. Raises OSError.
    """
    known = handled(version)
    net = _TCP if version >= TCP_ABI else 0
    scoped = _SCOPES if version >= SCOPES_ABI else 0
    given = _Ruleset(known.value, net, scoped)
    size = 8 if version < TCP_ABI else 16 if version < SCOPES_ABI else 24
    ruleset = _syscall(
        _CREATE_RULESET, ctypes.byref(given), ctypes.c_size_t(size), ctypes.c_uint32(0)
    )
    held: list[int] = []
    try:
        for rule in rules:
            held += _add(ruleset, rule, known)
        _syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    except OSError:
        for descriptor in held:
            os.close(descriptor)
        raise
    finally:
        os.close(ruleset)
    return held


def _add(ruleset: int, rule: Rule, known: Access) -> list[int]:
    """Add one rule; nothing for a path that there is not."""
    try:
        descriptor = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return []
    access = rule.access & known
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        access &= _OF_FILES
    beneath = _PathBeneath(access.value, descriptor)
    try:
        _syscall(
            _ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(_PATH_BENEATH),
            ctypes.byref(beneath),
            ctypes.c_uint32(0),
        )
    except OSError:
        os.close(descriptor)
        raise
    return [descriptor]


def _syscall(number: int, *arguments: object) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    result = int(library.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
