"""Gives a device the work of engines, by a process that has confined itself before.

    python -m benchmarks.gpu.confined_program STAGE DEVICE FOLDER

STAGE is what it takes on, one of ``_STAGES``. The last line of the output is a JSON object: the
seconds of the work, the files that it holds, and the measures that it could not take.
"""

import json
import os
import sys
import time
from collections.abc import Callable

import torch

from workers.confinement import (
    Kernel,
    confine,
    landlock,
    limits,
    paths,
    rules,
    seccomp,
)
from workers.protocol import Confinement, DeviceKind, Load

_SIDE = 256


def _files(spec: Load, confinement: Confinement, folder: str) -> None:
    landlock.restrict(rules(spec, confinement, folder), Kernel.find().landlock)


def _limits(*_: object) -> None:
    limits.bounded_files()
    limits.drop_capabilities()


def _calls(*_: object) -> None:
    seccomp.install(programs=False, unix_sockets=paths.uses_mps())


_STAGES: dict[str, Callable[[Load, Confinement, str], object]] = {
    "nothing": lambda *_: None,
    "limits": _limits,
    "files": _files,
    "system calls": _calls,
    "everything": confine,
}


def main() -> None:
    stage, kind, folder = sys.argv[1:]
    device: DeviceKind = "cuda" if kind == "cuda" else "cpu"
    spec = Load(model="m", engine="text", path=folder, device=device)
    limits.no_new_privileges()
    confined = _STAGES[stage](
        spec, Confinement(mode="require", inputs=folder, caches=folder), folder
    )
    missing = getattr(confined, "missing", ())
    began = time.perf_counter()
    _work(torch.device(device))
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "held": _held(), "missing": missing}))


def _work(device: torch.device) -> None:
    """Start the driver; multiply, convolve, attend; copy through pinned memory; replay a graph."""
    x = torch.randn(_SIDE, _SIDE, device=device)
    total = (x @ x).sum() + torch.nn.functional.conv2d(x[None, None], x[None, None, :3, :3]).sum()
    rows = x.view(1, 4, 64, _SIDE)
    total += torch.nn.functional.scaled_dot_product_attention(rows, rows, rows).sum()
    total += torch.linalg.qr(x[:16, :16]).R.sum()
    float(total)
    if device.type != "cuda":
        return
    torch.ones(1 << 20).pin_memory().to(device, non_blocking=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x @ x
    graph.replay()
    float(y.sum())


def _held() -> list[str]:
    """Return the devices and the kernel's files that the process holds open or mapped, for the
    rules."""
    paths = {os.readlink(f"/proc/self/fd/{name}") for name in _descriptors()}
    with open("/proc/self/maps") as maps:
        paths |= {line.split(maxsplit=5)[5].strip() for line in maps if "/" in line}
    return sorted(path for path in paths if path.startswith(("/dev/", "/proc/", "/sys/", "/run/")))


def _descriptors() -> list[str]:
    """Return the descriptors that are still open once the list of them has been read."""
    found = os.listdir("/proc/self/fd")
    return [name for name in found if os.path.exists(f"/proc/self/fd/{name}")]


if __name__ == "__main__":
    main()
