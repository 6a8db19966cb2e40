"""OOM kills: whether the kernel has ended a process, by its counters."""

from pathlib import Path

import pytest

from workers.oom_kills import OomKills

V2 = "30 24 0:26 {root} {mounted} rw - cgroup2 cgroup rw\n"
V1 = "30 24 0:26 {root} {mounted} rw - cgroup cgroup rw,memory\n"


def kernel(tmp_path: Path, mount: str, line: str) -> Path:
    """Write the kernel's files: the group that this process is in, and the machine's counters."""
    group = tmp_path / "cgroup" / "server"
    group.mkdir(parents=True)
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(f"{line}\n")
    (proc / "self/mountinfo").write_text(mount.format(root="/", mounted=tmp_path / "cgroup"))
    (proc / "vmstat").write_text("nr_free_pages 12\noom_kill 7\n")
    return group


def test_oom_kill_is_counted_in_the_own_group_and_not_in_the_machine(tmp_path: Path) -> None:
    group = kernel(tmp_path, V2, "0::/server")
    (group / "memory.events").write_text("low 0\noom 1\noom_kill 0\noom_group_kill 0\n")
    kills = OomKills(tmp_path / "proc")
    (tmp_path / "proc/vmstat").write_text("oom_kill 8\n")  # in another container
    assert not kills.have_risen()
    (group / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert kills.have_risen()


@pytest.mark.parametrize("where", ["group", "machine"])
def test_oom_kill_is_counted_in_an_old_group_or_the_machine(tmp_path: Path, where: str) -> None:
    group = kernel(tmp_path, V1, "4:memory:/server")
    control = group / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    kills = OomKills(tmp_path / "proc")
    assert not kills.have_risen()
    if where == "group":
        control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    else:
        (tmp_path / "proc/vmstat").write_text("oom_kill 8\n")
    assert kills.have_risen()


def test_oom_kill_is_forgotten_after_some_looks(tmp_path: Path) -> None:
    kernel(tmp_path, V1, "4:memory:/server")
    kills = OomKills(tmp_path / "proc")
    kills.refresh()
    (tmp_path / "proc/vmstat").write_text("oom_kill 8\n")
    for _ in range(9):
        kills.refresh()
        assert kills.have_risen()  # the process may be large, and not gone yet
    kills.refresh()
    assert not kills.have_risen()


def test_oom_kill_is_not_told_where_the_kernel_tells_nothing(tmp_path: Path) -> None:
    kills = OomKills(tmp_path)
    kills.refresh()
    assert not kills.have_risen()
