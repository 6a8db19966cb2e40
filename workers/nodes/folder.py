"""Keeps the folder of an agent: what workers write and read there goes with the agent."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "bitinglip-agent-"
_LOCK = "lock"


class AgentFolder:
    """Makes a folder for one agent below one that agents share; those of killed agents are
    removed."""

    def __init__(self, parent: Path) -> None:
        """Raises OSError, for a parent that others may write to as well."""
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = parent.lstat()
        alone = found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if not stat.S_ISDIR(found.st_mode) or not alone:
            raise OSError(f"{parent} is no folder that this user alone may write to")
        for each in parent.glob(f"{_PREFIX}*"):
            _remove_if_left(each)
        while True:
            root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if root.is_dir():
                break
            os.close(lock)  # another agent that begins took it for one that was left
        self.root, self._lock = root, lock

    def remove(self) -> None:
        """Remove it; the lock is given back last, so that no other agent does at the same time."""
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._lock)


def other_agents(own: AgentFolder) -> Iterator[Path]:
    """Iterate over the folders of the other agents that run now."""
    for each in own.root.parent.glob(f"{_PREFIX}*"):
        if each != own.root and _is_held(each):
            yield each


def _is_held(folder: Path) -> bool:
    """Return True if the agent of a folder runs: it holds its lock."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def _remove_if_left(folder: Path) -> None:
    """Remove the folder of an agent that runs no longer."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # it runs
        pass
    finally:
        os.close(lock)
