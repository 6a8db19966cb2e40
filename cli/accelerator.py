"""What there is to compute with: the driver, the cards, and the torch that was installed.

torch itself is never imported: that takes seconds, and only workers do it.
"""

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cli.findings import Finding
from cli.output import size

if TYPE_CHECKING:
    from workers.devices import Device

_CUDA = re.compile(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", re.MULTILINE)


@dataclass(frozen=True)
class Driver:
    version: str
    cuda: tuple[int, int]  #: the newest CUDA that it runs


def accelerator() -> Iterator[Finding]:
    """Driver, cards and torch, and whether they go together."""
    if (driver := _driver()) is None:
        yield Finding("gpu", "ok", "no NVIDIA driver: models run on the processor")
        yield _torch(None)
        return
    cards = _cards()
    if not cards:
        yield Finding(
            "gpu",
            "warning",
            f"driver {driver.version}, but it shows no card",
            "see what nvidia-smi says; in a container, pass --gpus all",
        )
    for card in cards:
        detail = f"{card.id}: {card.name}, {size(card.memory_bytes)}, driver {driver.version}"
        yield Finding("gpu", "ok", detail)
    yield _torch(driver if cards else None)


def _cards() -> list["Device"]:
    from workers.devices import Devices

    return [device for device in Devices.find().list() if device.kind == "cuda"]


def _driver() -> Driver | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        number = pynvml.nvmlSystemGetCudaDriverVersion()
        return Driver(pynvml.nvmlSystemGetDriverVersion(), (number // 1000, number % 1000 // 10))
    finally:
        pynvml.nvmlShutdown()


def _torch(driver: Driver | None) -> Finding:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Finding("torch", "error", "not installed", "run: pip install torch")
    cuda = _cuda_of_torch()
    if driver is None:
        return Finding("torch", "ok", f"{version}, for {f'CUDA {cuda}' if cuda else 'processors'}")
    if cuda is None:
        return Finding(
            "torch",
            "error",
            f"{version} is built for processors and leaves the GPU unused",
            "install a CUDA build of it: https://pytorch.org/get-started/locally",
        )
    if int(cuda.partition(".")[0]) > driver.cuda[0]:
        newest = ".".join(map(str, driver.cuda))
        return Finding(
            "torch",
            "error",
            f"{version} needs CUDA {cuda}; driver {driver.version} runs {newest} at most",
            "update the NVIDIA driver, or install a torch for an older CUDA",
        )
    return Finding("torch", "ok", f"{version}, for CUDA {cuda}")


def _cuda_of_torch() -> str | None:
    """The CUDA version that torch was built for, from its own version file."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return None
    return found[1] if (found := _CUDA.search(text)) else None
