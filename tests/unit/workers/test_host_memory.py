"""Memory limits of a process: RAM, or the least limit of the control groups it is in.

The kernel's files are made up here, in the forms that versions 1 and 2 have.
"""

from pathlib import Path

import psutil
import pytest

from bitinglip.settings import Settings
from cli.checks import accelerator
from tests.support.machines import MadeUpHost
from workers.devices import Devices
from workers.devices.host import Host

GIB = 1024**3
RAM = psutil.virtual_memory().total
NO_LIMIT_IN_ONE = "9223372036854771712\n"


def proc(tmp_path: Path, cgroup: str, mounts: str) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "self/cgroup").write_text(cgroup)
    (folder / "self/mountinfo").write_text(
        "22 1 0:21 / / rw shared:1 - ext4 /dev/vda rw\n" + mounts.replace("AT", str(tmp_path))
    )
    return folder


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text)


def test_cgroup_v2_takes_the_limit_of_an_outer_group(tmp_path: Path) -> None:
    mounts = "30 22 0:26 / AT/fs rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
    folder = proc(tmp_path, "0::/outer/inner\n", mounts)
    group(tmp_path / "fs")
    group(tmp_path / "fs/outer/inner", max="max\n", current="1\n")
    stat = f"anon 5\ninactive_file {GIB // 8}\nactive_file {GIB // 8}\n"
    group(tmp_path / "fs/outer", max=f"{GIB}\n", current=f"{GIB // 2}\n", stat=stat)
    host = Host(folder)
    assert host.total_bytes == GIB
    assert host.read(()).used_bytes == GIB // 4


def test_cgroup_v1_in_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    mounts = (
        "31 22 0:27 /docker/abc AT/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
        "32 22 0:28 /docker/abc AT/memory ro - cgroup cgroup rw,memory\n"
    )
    folder = proc(tmp_path, "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n", mounts)
    stat = f"inactive_file 1\ntotal_inactive_file {GIB // 2}\ntotal_active_file 0\n"
    group(tmp_path / "memory", limit_in_bytes=f"{GIB}\n", usage_in_bytes=f"{GIB}\n", stat=stat)
    host = Host(folder)
    assert host.total_bytes == GIB
    assert host.read(()).used_bytes == GIB // 2


def test_cgroup_limit_above_the_ram_is_ignored(tmp_path: Path) -> None:
    mounts = "32 22 0:28 / AT/memory rw - cgroup cgroup rw,memory\n"
    folder = proc(tmp_path, "4:memory:/a\n", mounts)
    group(tmp_path / "memory/a", limit_in_bytes=NO_LIMIT_IN_ONE, usage_in_bytes="7\n")
    host = Host(folder)
    assert host.total_bytes == RAM
    assert host.read(()).used_bytes > 7


def test_cgroup_path_outside_of_the_mount_means_the_mounted_group(tmp_path: Path) -> None:
    mounts = "30 22 0:26 /box AT/fs ro - cgroup2 cgroup2 rw\n"
    folder = proc(tmp_path, "0::/elsewhere\n", mounts)
    group(tmp_path / "fs", max=f"{GIB}\n", current="9\n")
    host = Host(folder)
    assert (host.total_bytes, host.read(()).used_bytes) == (GIB, 9)


def test_cgroup_without_files_means_the_ram(tmp_path: Path) -> None:
    host = Host(tmp_path / "nothing")
    assert host.total_bytes == RAM
    assert host.name


def test_cpu_name_is_the_kernel_s(tmp_path: Path) -> None:
    folder = proc(tmp_path, "", "")
    (folder / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU: 8 cores\n")
    assert Host(folder).name == "Some CPU: 8 cores"


def stalls(some: float, full: float) -> str:
    return "".join(
        f"{kind} avg10=99.00 avg60={share} avg300=0.00 total=7\n"
        for kind, share in (("some", some), ("full", full))
    )


def test_pressure_of_memory_is_that_of_the_group_whose_limit_counts(tmp_path: Path) -> None:
    mounts = "30 22 0:26 / AT/fs rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
    folder = proc(tmp_path, "0::/inner\n", mounts)
    (folder / "pressure").mkdir()
    (folder / "pressure/memory").write_text(stalls(80.0, 2.5))
    assert Host(folder).pressure() == 0.025  # no group has a limit
    group(tmp_path / "fs/inner", max=f"{GIB}\n", current="1\n", pressure=stalls(90.0, 41.37))
    assert Host(folder).pressure() == pytest.approx(0.4137)
    (tmp_path / "fs/inner/memory.pressure").unlink()
    assert Host(folder).pressure() == 0.025


@pytest.mark.parametrize("text", [None, "", "some avg10=1.00 avg60=50.00 total=1\n", "nonsense"])
def test_pressure_that_the_kernel_does_not_tell_is_none(text: str | None, tmp_path: Path) -> None:
    folder = proc(tmp_path, "", "")
    if text is not None:
        (folder / "pressure").mkdir()
        (folder / "pressure/memory").write_text(text)
    assert Host(folder).pressure() is None


def test_pressure_is_told_with_what_to_do() -> None:
    host = MadeUpHost()
    devices = Devices(host=host)
    for waits, told in ((None, False), (0.09, False), (0.5, True), (0.0, False)):
        host.waits = waits
        devices.read()
        assert (devices.pressure() is not None) == told
        found = list(accelerator.findings(devices, Settings(), None))
        shown = [each for each in found if each.check == "ram"]
        assert [each.level for each in shown] == ["warning"] * told
        assert all("50% of the last minute" in each.detail and each.advice for each in shown)
