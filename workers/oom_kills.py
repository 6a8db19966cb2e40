"""Finds out whether the kernel has ended processes lately because RAM ran out.

A process that it ends so is ended by signal 9, like one that is killed from outside: only the
kernel's counters tell the two apart.
"""

from collections import deque
from pathlib import Path

from workers.devices.host import memory_groups

_PROC = Path("/proc")
_LOOKS = 10  #: that are compared with the present: a large process takes seconds to end
_FIELD = "oom_kill"


class OomKills:
    """Reads the counters of this process's control group, or of the machine, over
    the last looks."""

    def __init__(self, proc: Path = _PROC) -> None:
        """``proc`` is where the kernel tells of this process and its control groups."""
        self._files = _counters(proc)
        self._looks: deque[int] = deque([self._count()], maxlen=_LOOKS)

    def refresh(self) -> None:
        """Note the present count; to be called about once a second."""
        self._looks.append(self._count())

    def have_risen(self) -> bool:
        """Return True if the kernel has ended a process since the oldest of the last looks."""
        return self._count() > self._looks[0]

    def _count(self) -> int:
        return sum(_value(file) for file in self._files)


def _counters(proc: Path) -> list[Path]:
    """Return the files with a counter: the own group's, which in version 2 counts all that matter;
    else those of version 1 and of the whole machine."""
    groups = memory_groups(proc)
    for group in groups[:1]:
        if (group / "memory.events").exists():
            return [group / "memory.events"]
    return [*(group / "memory.oom_control" for group in groups[:1]), proc / "vmstat"]


def _value(file: Path) -> int:
    """Return the counter of a file; 0 where there is none, or it may not be read."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(" ")
        if name == _FIELD and value.strip().isdecimal():
            return int(value)
    return 0
