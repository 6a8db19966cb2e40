"""How much memory a process may use: RAM, or the least limit of the control groups it is in.

The kernel's files are made up here, in the forms that versions 1 and 2 have.
"""

from pathlib import Path

import psutil

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
