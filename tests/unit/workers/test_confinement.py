"""Parts of confinement: the filter's program, the rules' paths, the versions of Landlock."""

import errno
import os
import socket
from pathlib import Path

import pytest

from workers.confinement import Kernel, landlock, paths, rules, seccomp
from workers.confinement.landlock import OWN, READ, Access, Rule
from workers.confinement.syscalls import ARCHITECTURES, FORBIDDEN, Architecture
from workers.protocol import Confinement, ImageOptions, Load, SpeechOptions, TextOptions

PID = 4711
EPERM, ENOSYS = errno.EPERM, errno.ENOSYS
THREAD = 0x003D0F00  #: the flags of pthread_create
FORK = 0x01200011


def answer(
    arch: Architecture,
    number: int,
    *arguments: int,
    audit: int | None = None,
    programs: bool = False,
    unix_sockets: bool = False,
) -> int:
    """Return the filter's verdict on a call: 0 allows it, else the error."""
    code = list(seccomp.program(arch, PID, programs=programs, unix_sockets=unix_sockets))
    words = {0: number, 4: arch.audit if audit is None else audit}
    words |= {16 + 8 * place: value for place, value in enumerate((*arguments, *[0] * 6)[:6])}
    at = value = 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == 0x20:
            value = words[k]
        elif operation == 0x06:
            return k & 0xFFFF if k & 0xFFFF0000 == 0x00050000 else 0
        else:
            test = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[operation]
            at += if_true if test else if_false


@pytest.fixture(params=sorted(ARCHITECTURES))
def arch(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def test_seccomp_refuses_what_is_forbidden_and_no_other_call(arch: Architecture) -> None:
    known = {number: name for name, number in arch.numbers.items()}
    refused = {known[n] for n in known if answer(arch, n)}
    allowed = {number for number in range(480) if number not in known}
    assert refused >= set(FORBIDDEN) & set(arch.numbers)
    assert not {number for number in allowed if answer(arch, number)}


def test_seccomp_refuses_calls_of_another_architecture(arch: Architecture) -> None:
    assert answer(arch, 0, audit=0x40000003) == EPERM
    assert answer(ARCHITECTURES["x86_64"], 0x40000000 + 59) == EPERM


@pytest.mark.parametrize(
    ("call", "arguments", "expected", "with_programs"),
    [
        ("execve", (), EPERM, 0),
        ("execveat", (), EPERM, 0),
        ("clone", (THREAD,), 0, 0),
        ("clone", (FORK,), EPERM, 0),
        ("clone", (THREAD | 0x20000,), EPERM, EPERM),
        ("clone", (FORK | 0x10000000,), EPERM, EPERM),
        ("clone3", (), ENOSYS, ENOSYS),
        ("socket", (socket.AF_INET,), EPERM, EPERM),
        ("socket", (socket.AF_NETLINK,), EPERM, EPERM),
        ("socket", (socket.AF_UNIX,), EPERM, EPERM),
        ("socketpair", (socket.AF_UNIX,), 0, 0),
        ("kill", (PID,), 0, 0),
        ("kill", (1,), EPERM, 0),
        ("tgkill", (PID, PID), 0, 0),
        ("tgkill", (1, 1), EPERM, 0),
        ("prlimit64", (0,), 0, 0),
        ("prlimit64", (1,), EPERM, EPERM),
        ("setpriority", (0, 0), 0, 0),
        ("setpriority", (0, 1), EPERM, EPERM),
        ("sched_setscheduler", (1,), EPERM, EPERM),
        ("ptrace", (), EPERM, EPERM),
        ("mount", (), EPERM, EPERM),
    ],
)
def test_seccomp_looks_at_arguments(
    arch: Architecture, call: str, arguments: tuple[int, ...], expected: int, with_programs: int
) -> None:
    number = arch.numbers[call]
    assert answer(arch, number, *arguments) == expected
    assert answer(arch, number, *arguments, programs=True) == with_programs


def test_seccomp_allows_a_driver_its_unix_sockets_only(arch: Architecture) -> None:
    found = [
        answer(arch, arch.numbers["socket"], family, unix_sockets=True)
        for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
    ]
    assert found == [0, EPERM, EPERM, EPERM]


def test_seccomp_knows_both_architectures_by_the_same_names() -> None:
    """Check that calls which only x86-64 has are older interfaces that aarch64 replaces."""
    x86, arm = (ARCHITECTURES[name].numbers for name in ("x86_64", "aarch64"))
    assert set(arm) <= set(x86)
    assert set(x86) - set(arm) == {
        *("chmod", "chown", "lchown", "utime", "utimes", "futimesat", "mknod", "inotify_init"),
        *("iopl", "ioperm", "modify_ldt", "fork", "vfork"),
    }
    for numbers in (x86, arm):
        assert len(set(numbers.values())) == len(numbers)


def test_landlock_handles_what_a_version_has() -> None:
    assert landlock.handled(1) == Access((1 << 13) - 1)
    assert landlock.handled(2) & ~landlock.handled(1) == Access.REFER
    assert landlock.handled(3) & ~landlock.handled(2) == Access.TRUNCATE
    assert landlock.handled(9) & ~landlock.handled(3) == Access.IOCTL_DEV


def test_kernel_says_what_it_lacks() -> None:
    assert Kernel(7, True).lacks() == {}
    assert set(Kernel(0, True).lacks()) == {"files"}
    assert set(Kernel(2, True).lacks()) == {"truncation"}
    assert set(Kernel(3, False).lacks()) == {"system_calls"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("lib/python/x", "data/home/models", "share/fonts"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/home/admin.key").touch()
    (tmp_path / "data/link").symlink_to(tmp_path / "data/home")
    return tmp_path / "data/home"


def test_paths_that_hold_a_secret_are_taken_without_it(home: Path) -> None:
    root = home.parent.parent
    (root / "data/other").mkdir()
    parts = list(paths.without(root, [home]))
    assert parts == [root / "data/other", root / "lib", root / "share"]
    assert list(paths.without(home, [home])) == []
    assert list(paths.without(root / "lib", [home])) == [root / "lib"]
    assert list(paths.without(home / "models", [home])) == [home / "models"]


def test_paths_of_python_are_not_the_folder_that_the_server_was_started_in(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = home.parent.parent
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("PYTHONPATH", "")
    found = {rule.path for rule in paths.system([], programs=False)}
    assert str(root) not in found
    monkeypatch.setenv("PYTHONPATH", str(root))
    found = {rule.path for rule in paths.system([str(home)], programs=False)}
    assert {str(root / "lib"), str(root / "share")} <= found
    assert not any(home.is_relative_to(path) for path in found)


def confinement(root: Path) -> Confinement:
    return Confinement(
        mode="require",
        inputs=str(root / "files"),
        caches=str(root / "cache"),
        hidden=(str(root),),
    )


def test_rules_let_a_model_read_its_files_and_write_to_its_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in paths.COMPILER_CACHES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blob").touch()
    (tmp_path / "snapshot/style.safetensors").symlink_to("../blob")
    spec = Load(
        model="m",
        engine="image",
        path="model",
        image=ImageOptions(loras={"style": str(tmp_path / "snapshot")}),
        speech=SpeechOptions(vocoder="vocoder", voices={"ann": "ann.npy"}),
        text=TextOptions(lora_folder="lent"),
    )
    found = {rule.path: rule.access for rule in rules(spec, confinement(tmp_path), "own")}
    for path in ("model", "vocoder", "ann.npy", "lent", str(tmp_path / "snapshot")):
        assert found[path] == READ
    assert found[str(tmp_path / "blob")] == Access.READ_FILE
    assert found[str(tmp_path / "files")] == Access.READ_FILE
    writable = {path for path, access in found.items() if access & Access.WRITE_FILE}
    assert writable == {"own", "/dev/null", "/proc/self"}
    assert not any(access & Access.EXECUTE for access in found.values())


def test_rules_for_a_card_open_its_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check patterns and rights in a folder that stands for the machine's."""
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-caps/x", "sda", "pipes/control"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    moved = tuple(str(tmp_path / Path(each).name) for each in paths._CUDA_DEVICES)
    monkeypatch.setattr(paths, "_CUDA_DEVICES", moved)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "pipes"))
    found = {rule.path: rule.access for rule in paths.cuda()}
    devices = ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-caps", "pipes")
    for name in devices:
        assert found[str(tmp_path / name)] & (Access.IOCTL_DEV | Access.WRITE_FILE)
    assert str(tmp_path / "sda") not in found
    spec = Load(model="m", engine="text", path="model", device="cuda")
    assert str(tmp_path / "nvidia0") in {
        rule.path for rule in rules(spec, confinement(tmp_path), "own")
    }


def test_caches_of_compilers_outlive_the_process_unless_the_operator_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = paths.COMPILER_CACHES
    monkeypatch.setenv(first, str(tmp_path / "own/torchinductor_me"))  # as torch sets it
    monkeypatch.setenv(second, "/mine")
    model = str(tmp_path / "models/m/files")
    paths.choose_caches((first, second), str(tmp_path / "cache"), model, str(tmp_path / "own"))
    chosen = Path(os.environ[first])
    assert chosen.is_relative_to(tmp_path / "cache/m")
    assert chosen.stat().st_mode & 0o777 == 0o700
    assert paths.caches()[:2] == [str(chosen), "/mine"]


def test_rules_of_a_compiler_may_run_programs(tmp_path: Path) -> None:
    spec = Load(model="m", engine="image", path="model", image=ImageOptions(compile=True))
    found = list(rules(spec, confinement(tmp_path), "own"))
    assert Rule("/usr", READ | Access.EXECUTE) in found
    assert Rule("own", OWN) in found
