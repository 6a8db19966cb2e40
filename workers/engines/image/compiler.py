"""Finds out whether torch.compile can work here, before minutes of loading. Imports no torch."""

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from workers.protocol import DeviceKind

#: Triton builds a launcher in C for each kernel; on a processor, kernels themselves are C++.
_COMPILERS: dict[DeviceKind, tuple[str, str, tuple[str, ...]]] = {
    "cuda": ("C", "CC", ("gcc", "clang")),
    "cpu": ("C++", "CXX", ("g++",)),
}


def missing_for_compile(
    device: DeviceKind,
    environ: Mapping[str, str] = os.environ,
    headers: Path | None = None,
) -> str | None:
    """Say what ``image.compile`` lacks on this machine, and what to do; None if nothing.

    ``headers`` is the folder of Python.h.
    """
    language, variable, usual = _COMPILERS[device]
    names = (environ[variable],) if environ.get(variable) else usual
    if not any(shutil.which(name, path=environ.get("PATH")) for name in names):
        tried = f"what {variable} names" if environ.get(variable) else " or ".join(usual)
        return (
            f"image.compile needs a {language} compiler, and {tried} was not found: install one, "
            "or set image.compile to false."
        )
    if not ((headers or Path(sysconfig.get_path("include"))) / "Python.h").is_file():
        return (
            "image.compile needs Python's C headers, and Python.h was not found: install the "
            "development package of this Python, or set image.compile to false."
        )
    return None
