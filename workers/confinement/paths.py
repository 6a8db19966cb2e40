"""Lists the files that a worker needs beside its model's, and how it needs them.

Found by running each engine under a trace of system calls; a test runs them confined. The files of
CUDA are from its documentation and from reports, and are tried by ``benchmarks.gpu``.
"""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from workers.confinement.landlock import READ, WRITE, Access, Rule

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store")
_SETTINGS = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/ssl/openssl.cnf",
    "/etc/mime.types",
)
#: Of the processes in /proc only the own one: /proc/self is a link to it.
_KERNEL = (
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/fs/cgroup",
    "/sys/kernel/mm/transparent_hugepage",
)
_DEVICES = ("/dev/zero", "/dev/random", "/dev/urandom")

#: CUDA's devices, its driver's facts, MPS, WSL, and where NixOS has its libraries.
_CUDA_DEVICES = (
    "/dev/nvidiactl",
    "/dev/nvidia[0-9]*",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
    "/dev/nvidia-caps",
    "/dev/nvidia-caps-imex-channels",
    "/dev/nvidia-nvswitchctl",
    "/dev/dxg",
    "/dev/shm",
)
_CUDA_FACTS = (
    "/proc/driver/nvidia",
    "/proc/driver/nvidia-uvm",
    "/proc/driver/nvidia-caps",
    "/proc/driver/nvidia-nvlink",
    "/proc/devices",
    "/proc/modules",
    "/proc/version",
    "/proc/sys",
    "/sys/module/nvidia*",
    "/sys/bus/pci",
    "/sys/bus/pci_express",
    "/sys/class/pci_bus",
    "/sys/devices",
    "/run/nvidia-persistenced",
    "/run/opengl-driver",
    "/etc/nvidia",
)
_CUDA_MPS = "/tmp/nvidia-mps"

#: Variables that name the caches of compilers: torch's and Triton's; and of kernels that the
#: driver and torch build at their first use, for a card that the wheels have no code for.
COMPILER_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
DRIVER_CACHES = ("CUDA_CACHE_PATH", "PYTORCH_KERNEL_CACHE_PATH")
#: torch's kernels alone are more than older drivers keep (256 MiB).
DRIVER_CACHE_SIZE, DRIVER_CACHE_BYTES = "CUDA_CACHE_MAXSIZE", str(2**30)


def system(secrets: Iterable[str], *, programs: bool) -> Iterator[Rule]:
    """Yield the rules for the system and for Python with its packages, but for the secrets."""
    access = READ | Access.EXECUTE if programs else READ
    hidden = [Path(os.path.realpath(each)) for each in secrets]
    covered: tuple[str, ...] = ()
    for folder in (*_SYSTEM, *_python()):
        real = os.path.join(os.path.realpath(folder), "")
        if not real.startswith(covered):
            covered += (real,)
            for part in without(Path(real), hidden):
                yield Rule(str(part), access)
    for path in (*_SETTINGS, *_KERNEL, *_DEVICES):
        yield Rule(path, READ)
    yield Rule("/proc/self", WRITE)
    yield Rule("/dev/null", WRITE)


def cuda() -> Iterator[Rule]:
    """Yield the rules for what CUDA's libraries open."""
    for pattern in (*_CUDA_DEVICES, _mps_pipes()):
        for path in glob.glob(pattern):
            yield Rule(path, WRITE | Access.IOCTL_DEV | Access.MAKE_REG | Access.REMOVE_FILE)
    for pattern in _CUDA_FACTS:
        for path in glob.glob(pattern):
            yield Rule(path, READ)


def uses_mps() -> bool:
    """True where CUDA's processes share a card through MPS, whose service has Unix sockets."""
    return os.path.isdir(_mps_pipes())


def _mps_pipes() -> str:
    return os.environ.get("CUDA_MPS_PIPE_DIRECTORY", _CUDA_MPS)


def model(named: Iterable[str]) -> Iterator[Rule]:
    """Yield the rules for a model's files, and for those that links of the operator's point to.

    A folder of the store holds no links; one that a setting names may be a cache's snapshot, which
    is made of them.
    """
    for path in named:
        yield Rule(path, READ)
        for folder, _, files in os.walk(path):
            for name in files:
                if os.path.islink(os.path.join(folder, name)):
                    yield Rule(os.path.realpath(os.path.join(folder, name)), Access.READ_FILE)


def caches() -> list[str]:
    """Return the folders of compilers' caches, as this process's environment names them."""
    named = (os.environ.get(name, "") for name in (*COMPILER_CACHES, *DRIVER_CACHES))
    return [path for path in named if path]


def choose_caches(names: Iterable[str], root: str, model_path: str, temporary: str | None) -> None:
    """Make and name caches that outlive this process, unless the operator chose some.

    A cache in the folder of temporary files is a library's choice, made when it was imported. Each
    model has caches of its own: what a worker writes there is run by that model's next worker.
    Raises OSError.
    """
    for name in names:
        chosen = os.environ.get(name)
        mine = temporary is not None and Path(chosen or "").is_relative_to(temporary)
        if not chosen or mine:
            own = Path(root, Path(model_path).parent.name, name.lower())
            own.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.environ[name] = str(own)


def without(folder: Path, hidden: list[Path]) -> Iterator[Path]:
    """Yield a folder, or, if something hidden lies in it, its parts that hold nothing of that."""
    if folder in hidden:
        return
    if not any(each.is_relative_to(folder) for each in hidden):
        yield folder
        return
    try:
        parts = sorted(folder.iterdir())
    except OSError:
        return
    for part in parts:
        if not part.is_symlink():
            yield from without(part, hidden)


def _python() -> Iterator[str]:
    """Yield Python's folders, the packages that are imported, and the operator's own paths.

    Not all of ``sys.path``: it may hold the folder in which the server was started.
    """
    yield from {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    yield from (path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH"):
        yield from (path for path in os.environ.get(name, "").split(os.pathsep) if path)
    packages = (each for name, each in list(sys.modules.items()) if "." not in name)
    for package in packages:
        yield from getattr(package, "__path__", ())
