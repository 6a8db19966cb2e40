"""Reads the processor and its memory: the machine's, or less where a control group limits them."""

import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from workers.devices.device import DeviceUsage

_PROC = Path("/proc")
_STALLED = re.compile(r"^full .*\bavg60=([0-9.]+)", re.MULTILINE)


class Host:
    """Measures the RAM, or as much of it as this process may use."""

    def __init__(self, proc: Path = _PROC) -> None:
        """``proc`` is where the kernel tells of this process and its control groups."""
        self.name = _processor(proc)
        ram = _ram()
        limits = [(group.limit() or ram, group) for group in _groups(proc)]
        least = min(limits, key=lambda found: found[0], default=(ram, None))
        self.total_bytes = min(ram, least[0])
        self._group = least[1] if least[0] < ram else None
        #: what the kernel tells of programs that wait for RAM: in our group, else everywhere
        self._pressures = [each.folder / "memory.pressure" for each in [self._group] if each]
        self._pressures.append(proc / "pressure/memory")
        self._ticks: tuple[float, float] | None = None
        self._lock = threading.Lock()
        #: the bytes in use that would be free at once if they were wanted
        self.unused: Callable[[], int] = lambda: 0

    def read(self, pids: Iterable[int]) -> DeviceUsage:
        """Read the memory that could not be had back, and the resident bytes of those processes.

        Raises OSError or psutil.Error if the kernel does not tell.
        """
        processes = {pid: size for pid in pids if (size := _resident(pid)) is not None}
        share = self._utilisation()
        used = max(0, self._used() - self.unused())
        return DeviceUsage(used, processes, utilisation=share, at=time.time())

    def free(self) -> int:
        """Return the bytes that could be had now. Raises as ``read`` does."""
        return self.total_bytes - self._used()

    def pressure(self) -> float | None:
        """Return the share of the last minute in which no program went on, for want of RAM.

        None where the kernel does not tell.
        """
        for path in self._pressures:
            if found := _STALLED.search(_text(path)):
                return float(found[1]) / 100
        return None

    def _used(self) -> int:
        if self._group is not None:
            return self._group.used()
        memory = psutil.virtual_memory()
        return int(memory.total - memory.available)

    def _utilisation(self) -> float | None:
        """Return the share of all cores' time that was used since the last look;
        None at the first."""
        now = _ticks()
        with self._lock:
            before, self._ticks = self._ticks, now
        if before is None or now[1] <= before[1]:
            return None
        return min(1.0, max(0.0, (now[0] - before[0]) / (now[1] - before[1])))


@dataclass(frozen=True, slots=True)
class _Group:
    """Describes a memory control group: its folder, and what its version calls the files."""

    folder: Path
    limit_file: str
    used_file: str
    cache: tuple[str, ...]  #: lines of memory.stat

    def limit(self) -> int | None:
        text = _text(self.folder / self.limit_file).strip()
        return int(text) if text.isdecimal() else None

    def used(self) -> int:
        """Return the bytes in use without pages of files, which the kernel takes back."""
        text = _text(self.folder / self.used_file).strip()
        stat = dict(line.split(" ", 1) for line in _text(self.folder / "memory.stat").splitlines())
        cached = sum(int(stat.get(name, 0)) for name in self.cache)
        return max(0, (int(text) if text.isdecimal() else 0) - cached)


def _groups(proc: Path) -> Iterator[_Group]:
    """Return the memory groups of this process, version 2 and 1, each with those around it."""
    paths = [line.split(":", 2) for line in _text(proc / "self/cgroup").splitlines()]
    for line in _text(proc / "self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        root, mounted = (_unescaped(field) for field in fields.split()[3:5])
        for number, controllers, path in paths:
            is_two = kind == "cgroup2" and number == "0"
            is_one = kind == "cgroup" and "memory" in controllers.split(",")
            if is_two:
                yield from _upwards(Path(mounted), root, path, _TWO)
            elif is_one and "memory" in options.replace(" ", ",").split(","):
                yield from _upwards(Path(mounted), root, path, _ONE)


def memory_groups(proc: Path = _PROC) -> list[Path]:
    """List the folders of this process's memory groups, its own before those around it."""
    return [group.folder for group in _groups(proc)]


_TWO = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_ONE = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def _upwards(
    mounted: Path, root: str, path: str, names: tuple[str, str, tuple[str, ...]]
) -> Iterator[_Group]:
    """Yield the group at ``path`` and those around it, up to where the hierarchy is mounted."""
    # In a container the path may be one of outside, of which only the mounted root is to be seen.
    inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
    folder = mounted / inside
    while True:
        yield _Group(folder, *names)
        if folder == mounted or mounted not in folder.parents:
            return
        folder = folder.parent


def _unescaped(field: str) -> str:
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def _text(path: Path) -> str:
    """Read a file of the kernel's; empty where there is none, or it may not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _ram() -> int:
    try:
        return int(psutil.virtual_memory().total)
    except (OSError, psutil.Error):  # no /proc, or no descriptors
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _resident(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, ValueError, OverflowError):
        return None


def _ticks() -> tuple[float, float]:
    """Return the seconds that all cores were busy, and busy or idle, since the machine started."""
    times = psutil.cpu_times()
    # Guests' time is in that of the user already.
    total = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
    return total - times.idle - getattr(times, "iowait", 0), total


def _processor(proc: Path) -> str:
    for line in _text(proc / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "CPU"
