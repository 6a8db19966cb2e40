"""Tells from the kernel's table of mounts whether a folder lies where models load slowly."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_OVER_A_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs"}
_WITHOUT_LINKS = {"vfat", "msdos", "exfat", "fuse.exfat", "fuse.gcsfuse", "fuse.s3fs"}
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    folder: str
    kind: str  #: ext4, nfs4, fuse.sshfs, ...
    device: str  #: major:minor
    source: str
    options: str  #: of the file system


def slow_storage(folder: Path, root: Path = Path("/")) -> str | None:
    """Say what makes reading large files in this folder slow; None if nothing is known to.

    ``root`` is where proc and sys are. Weights are mapped and read in small pieces, which such
    file systems serve many times slower than a local disk.
    """
    try:
        text = (root / "proc/self/mountinfo").read_text()
    except OSError:
        return None
    mount = mount_of(os.path.realpath(folder), text)
    if mount is None:
        return None
    if mount.kind in ("9p", "drvfs") and "drvfs" in (mount.kind + mount.options):
        return "a Windows drive"
    if mount.kind == "9p":
        return "a folder shared by the host (9p)"
    if mount.kind in _OVER_A_NETWORK:
        return f"a network file system ({mount.kind})"
    if mount.kind.startswith("fuse"):
        return f"a file system in user space ({mount.kind})"
    return "a disk that turns" if _turns(mount, root) else None


def without_links(folder: Path, root: Path = Path("/")) -> str | None:
    """Return the file system's name if it has no hard links, so that no two models share files."""
    try:
        text = (root / "proc/self/mountinfo").read_text()
    except OSError:
        return None
    mount = mount_of(os.path.realpath(folder), text)
    return mount.kind if mount is not None and mount.kind in _WITHOUT_LINKS else None


def mount_of(path: str, mountinfo: str) -> Mount | None:
    """Return the mount that a path lies on, by the text of /proc/self/mountinfo."""
    found = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split(" ")
        if len(fields) < 5 or len(rest) < 3:
            continue
        folder = _ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[4])
        within = path == folder or path.startswith(folder.rstrip("/") + "/")
        # Of mounts on one folder the last covers the others.
        if within and (found is None or len(folder) >= len(found.folder)):
            found = Mount(folder, rest[0], fields[2], rest[1], rest[2])
    return found


def _turns(mount: Mount, root: Path) -> bool:
    """Return True for a magnetic disk. What a virtual machine says of its disks means nothing."""
    name = os.path.basename(mount.source)
    for device in (root / "sys/dev/block" / mount.device, root / "sys/class/block" / name):
        disk = Path(os.path.realpath(device))
        for folder in (disk, disk.parent):  # of a partition, its disk's
            try:
                turns = (folder / "queue/rotational").read_text().strip() == "1"
            except OSError:
                continue
            return turns and "virtio" not in str(folder)
    return False
