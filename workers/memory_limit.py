"""How much memory a container may use, and uses: the control group's word, where there is one."""

from pathlib import Path

_V2 = Path("/sys/fs/cgroup")
_V1 = Path("/sys/fs/cgroup/memory")
_NO_LIMIT = 1 << 60  #: version 1 says "none" with a number near the end of the range


def memory_limit() -> int | None:
    """Bytes that this control group may have; None: as much as the machine has."""
    for path in (_V2 / "memory.max", _V1 / "memory.limit_in_bytes"):
        limit = _number(path)
        if limit is not None and limit < _NO_LIMIT:
            return limit
    return None


def memory_used() -> int | None:
    """Bytes that it uses and could not give back at once; None where it has no limit."""
    if memory_limit() is None:
        return None
    for folder, current in ((_V2, "memory.current"), (_V1, "memory.usage_in_bytes")):
        used = _number(folder / current)
        if used is not None:
            return max(0, used - _inactive_files(folder / "memory.stat"))
    return None


def _inactive_files(path: Path) -> int:
    """The part of the page cache that goes first."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    stats = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(stats.get("total_inactive_file", stats.get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
