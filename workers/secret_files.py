"""Reads the files that hold secrets, by one rule, which docs/configuration.md tells.

Links are followed and a group may read, because containers mount secrets as links to files of mode
0440. Others may read a secret only where such mounts put it, for the mode is then not the
operator's to choose: below /run/secrets, or in memory, on a mount that is read-only or in a file
that another user owns.
"""

import os
import stat
from pathlib import Path
from typing import IO

_MOST_BYTES = 64 << 10  #: of a secret
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_MOUNTED = ("/run/secrets/", "/var/run/secrets/")  #: where container engines put secrets
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  #: opening a pipe would wait for its writer


class SecretFileRefused(Exception):
    """A file of a secret cannot be used. The message names it; ``why`` also says what to do."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.why = why


def read_secret_file(path: str | Path) -> bytes:
    """Return what a file of a secret holds. Raises SecretFileRefused."""
    with _open(_expanded(path)) as file:
        try:
            data = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise _unreadable(path, error) from None
    if len(data) > _MOST_BYTES:
        raise SecretFileRefused(path, f"is larger than a secret, which has {_MOST_BYTES} bytes")
    return data


def read_secret_text(path: str | Path) -> str:
    """Return the text of a secret, without the space around it. Raises SecretFileRefused."""
    try:
        return read_secret_file(path).decode().strip()
    except UnicodeDecodeError:
        raise SecretFileRefused(path, "is no text in UTF-8") from None


def check_secret_file(path: str | Path) -> None:
    """Check a file that a library will read by its name. Raises SecretFileRefused."""
    _open(path).close()


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # a user without a home
        raise _unreadable(path, error) from None


def _open(path: str | Path) -> IO[bytes]:
    try:
        fd = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:  # or a NUL in the name
        raise _unreadable(path, error) from None
    try:
        _check(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return open(fd, "rb")


def _check(path: str | Path, fd: int) -> None:
    found = os.fstat(fd)
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        raise SecretFileRefused(path, "cannot be read (it is no file)")
    if mode & stat.S_IWOTH:
        raise SecretFileRefused(
            path, f"holds a secret that others may write (mode {mode:04o}); chmod 600 it"
        )
    if mode & stat.S_IROTH and not _is_mounted(path, fd, found):
        raise SecretFileRefused(
            path,
            f"holds a secret that others may read (mode {mode:04o}); chmod 600 it, or 640 for a "
            "group",
        )


def _is_mounted(path: str | Path, fd: int, found: os.stat_result) -> bool:
    """Return True where a container engine or a service manager has put the file."""
    if os.path.realpath(path).startswith(_MOUNTED):
        return True
    own = found.st_uid == os.geteuid() and not os.fstatvfs(fd).f_flag & os.ST_RDONLY
    return not own and _kind(found.st_dev) in _IN_MEMORY


def _kind(device: int) -> str | None:
    """Return the name of a device's file system, as the kernel's table of mounts says."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
            for line in table:
                fields, _, rest = line.partition(" - ")
                if fields.split()[2:3] == [wanted]:
                    return rest.split(" ", 1)[0]
    except OSError:
        pass
    return None


def _unreadable(path: str | Path, error: Exception) -> SecretFileRefused:
    why = getattr(error, "strerror", None) or str(error)
    return SecretFileRefused(path, f"cannot be read ({why.lower()})")
