"""Keeps the folder of an agent: what workers write and read there goes with the agent."""

import fcntl
import os
import shutil
import stat
import tempfile
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
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        os.close(self._lock)
        shutil.rmtree(self.root, ignore_errors=True)


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
