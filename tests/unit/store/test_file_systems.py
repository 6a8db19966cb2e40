"""Storage that is slow to load models from, by made-up tables of mounts."""

from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from bitinglip.machine import open_page_cache
from bitinglip.settings import Settings
from model_store.file_systems import mount_of, slow_storage
from workers.devices import Devices

ROOT = "27 1 {device} / / rw,relatime - {kind} {source} rw"
EXT4 = ROOT.format(device="8:1", kind="ext4", source="/dev/sda1")


def machine(root: Path, *mounts: str, turns: bool = False, bus: str = "ata1") -> Path:
    disk = root / "sys/devices/pci0" / bus / "block/sda"
    (disk / "queue").mkdir(parents=True)
    (disk / "sda1").mkdir()
    (disk / "queue/rotational").write_text("1\n" if turns else "0\n")
    for folder, name in (("sys/dev/block", "8:1"), ("sys/class/block", "sda1")):
        (root / folder).mkdir(parents=True)
        (root / folder / name).symlink_to(disk / "sda1")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("\n".join((EXT4, *mounts)) + "\n")
    return root


def mounted(kind: str, options: str = "rw", folder: str = "/models") -> str:
    return f"40 27 0:50 / {folder} rw,relatime shared:1 - {kind} source {options}"


@pytest.mark.parametrize(
    ("mount", "told"),
    [
        (mounted("nfs4"), "a network file system (nfs4)"),
        (mounted("cifs"), "a network file system (cifs)"),
        (mounted("9p", "rw,dirsync,aname=drvfs;path=C:\\;uid=1000"), "a Windows drive"),
        (mounted("drvfs"), "a Windows drive"),
        (mounted("9p", "rw,trans=virtio"), "a folder shared by the host (9p)"),
        (mounted("fuse.sshfs"), "a file system in user space (fuse.sshfs)"),
        (mounted("fuseblk"), "a file system in user space (fuseblk)"),
        (mounted("overlay"), None),
        (mounted("xfs"), None),
        (mounted("nfs4", folder="/other"), None),
        (mounted("nfs4", folder="/mod"), None),
        ("malformed", None),
    ],
)
def test_storage_is_slow_by_its_file_system(mount: str, told: str | None, tmp_path: Path) -> None:
    assert slow_storage(Path("/models"), machine(tmp_path, mount)) == told


@pytest.mark.parametrize(
    ("turns", "bus", "told"),
    [
        (True, "ata1", "a disk that turns"),
        (True, "virtio2", None),
        (False, "ata1", None),
    ],
)
def test_storage_on_a_magnetic_disk_is_slow(
    turns: bool, bus: str, told: str | None, tmp_path: Path
) -> None:
    root = machine(tmp_path, turns=turns, bus=bus)
    assert slow_storage(Path("/models"), root) == told
    # btrfs has no device number of its own, but names its disk.
    btrfs = ROOT.format(device="0:31", kind="btrfs", source="/dev/sda1")
    (root / "proc/self/mountinfo").write_text(btrfs)
    assert slow_storage(Path("/models"), root) == told


def test_storage_of_an_unknown_kind_is_not_judged(tmp_path: Path) -> None:
    assert slow_storage(Path("/models"), tmp_path) is None


def test_storage_is_that_of_the_innermost_and_last_mount() -> None:
    table = "\n".join(
        [EXT4, mounted("nfs4", folder="/a\\040b"), mounted("xfs", folder="/a\\040b/c")]
    )
    found = {path: mount_of(path, table) for path in ("/a b/x", "/a b/c/x", "/a bc")}
    assert [mount.kind if mount else None for mount in found.values()] == ["nfs4", "xfs", "ext4"]
    covered = mount_of("/a b", "\n".join([table, mounted("tmpfs", folder="/a\\040b")]))
    assert covered is not None
    assert covered.kind == "tmpfs"


@pytest.mark.parametrize("slow", ["a Windows drive", None])
def test_storage_that_is_slow_is_told_at_the_start_and_read_in_sequence(
    slow: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitinglip.machine.slow_storage", lambda _: slow)
    told = LogCapture()
    # An earlier test may have configured a level above this one.
    own = structlog.wrap_logger(None, processors=[told], wrapper_class=structlog.BoundLogger)
    monkeypatch.setattr("bitinglip.machine.log", own)
    cache = open_page_cache(Settings().devices, Devices.find([("card", 1)]), Path("/models"))
    assert cache.reads_first == (slow is not None)
    assert [entry["storage"] for entry in told.entries] == [slow] * cache.reads_first
