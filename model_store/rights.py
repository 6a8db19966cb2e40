"""Says why a folder or file cannot be used: whose it is, its mode, and the command that repairs it.

Mounted folders are what this is for: the image's user is not the one who made them.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CONTAINER_SIGNS = (".dockerenv", "run/.containerenv")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Holds what is refused, and what to do about it."""

    detail: str
    advice: str

    def __str__(self) -> str:
        return f"{self.detail}; {self.advice}"


def refusal(path: Path, *, write: bool, system: Path = Path("/")) -> Refusal | None:
    """Say why this process cannot read, or also write, a folder or file; None if it can.

    Of what does not exist, the nearest folder above it is meant, in which it would be made.
    ``system`` is the root of the files by which containers and SELinux are known.
    """
    for parent in reversed(path.parents):
        if os.path.isdir(parent) and not _may(parent, os.X_OK):
            return _explain(parent, "entered", "a+x", system)
    missing = None
    if not os.path.lexists(path):
        if not write:
            return None
        missing, path = path, next(each for each in path.parents if os.path.lexists(each))
    needed = os.R_OK | (os.W_OK if write else 0) | (os.X_OK if path.is_dir() else 0)
    if not os.path.exists(path) or _may(path, needed):
        return None
    if write and os.statvfs(path).f_flag & os.ST_RDONLY:
        return Refusal(f"{path} is mounted read-only", "mount it so that it can be written to")
    verb = "written to" if write and _may(path, os.R_OK) else "read"
    return _explain(path, verb, "u+rwX", system, missing)


def unreadable_models(root: Path) -> Iterator[tuple[str, Refusal]]:
    """Yield the name of each folder of a store in which something cannot be read, and why."""
    if (found := refusal(root, write=False)) is not None:
        yield root.name, found
        return
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not folder.name.startswith(".") and (found := _in_tree(folder)) is not None:
            yield folder.name, found


def _in_tree(folder: Path) -> Refusal | None:
    """Return the first refusal in a folder, and of what its links point to."""
    found = refusal(folder, write=False)
    if found is not None or not folder.is_dir():
        return found
    inside = (
        part for part in sorted(folder.iterdir()) if not (part.is_symlink() and part.is_dir())
    )
    parts = (_in_tree(part) for part in inside)
    return next((found for found in parts if found is not None), None)


def _may(path: Path, needed: int) -> bool:
    return os.access(path, needed, effective_ids=os.access in os.supports_effective_ids)


def _explain(
    path: Path, verb: str, mode: str, system: Path, missing: Path | None = None
) -> Refusal:
    """``missing`` is what was to be made in ``path``, which stays its owner's."""
    uid, gid = os.geteuid(), os.getegid()
    found = os.stat(path)
    detail = (
        f"{path} cannot be {verb} by this process, whose uid is {uid}: it belongs to uid "
        f"{found.st_uid} and gid {found.st_gid}, with mode {stat.S_IMODE(found.st_mode):04o}"
    )
    if uid == 0:
        advice = "its file system does not obey root, as with NFS: let its owner run the server"
    elif verb == "entered":
        advice = f"run as root: chmod {mode} {path}"
    elif missing is not None:
        advice = f"run as root: install -d -o {uid} -g {gid} -m 700 {missing}"
    elif found.st_uid == uid:
        advice = f"run: chmod -R {mode} {path}"
    else:
        advice = f"run as root: chown -R {uid}:{gid} {path}"
    if any((system / sign).exists() for sign in _CONTAINER_SIGNS):
        advice += " (on the host, for the folder that is mounted there)"
        if found.st_uid not in (0, uid):
            advice += f", or start the container with --user {found.st_uid}:{found.st_gid}"
    if _selinux_enforces(system):
        advice += "; SELinux enforces here: a folder that is mounted into a container needs :Z"
    return Refusal(detail, advice)


def _selinux_enforces(system: Path) -> bool:
    """Return whether SELinux enforces. In a container, whose file system may hide it, the label of
    the process tells."""
    for name, sign in (("sys/fs/selinux/enforce", "1"), ("proc/self/attr/current", "container_t")):
        try:
            if sign in (system / name).read_text():
                return True
        except OSError:
            continue
    return False
