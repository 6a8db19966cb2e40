"""Tells which cards the installed torch can use, by its files: torch itself is never imported."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_CUDA = re.compile(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", re.MULTILINE)
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
#: the first Linux driver that runs programs of a CUDA major version
_FIRST_DRIVER = {11: 450, 12: 525, 13: 580}
#: the least compute capability that CUDA can build for, by its major version
_LEAST_CAPABILITY = {11: (3, 5), 12: (5, 0), 13: (7, 5)}


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """Describes the installed torch; ``cuda`` is None for one that is built for processors."""

    version: str
    cuda: str | None
    architectures: tuple[str, ...] = ()  #: what it has code for, where torch was asked

    @property
    def major(self) -> int:
        return int((self.cuda or "0").partition(".")[0])


def torch_build() -> TorchBuild | None:
    """Return the installed torch, by its version file; None if there is none."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return TorchBuild(version, None)
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return TorchBuild(version, None)
    return TorchBuild(version, cuda_of(text))


def cuda_of(version_file: str) -> str | None:
    """Return the CUDA version in the text of torch's version file."""
    return found[1] if (found := _CUDA.search(version_file)) else None


def driver_unfit(build: TorchBuild, version: str, cuda: tuple[int, int]) -> str | None:
    """Say why this torch cannot use any card with this driver; None if it can.

    ``cuda`` is the newest CUDA that the driver runs. Minor versions go with each other.
    """
    if build.cuda is None:
        return (
            f"torch {build.version} is built for processors and leaves the card unused: install "
            "a CUDA build of it (https://pytorch.org/get-started/locally)."
        )
    if build.major <= cuda[0]:
        return None
    newer = _FIRST_DRIVER.get(build.major)
    return (
        f"Driver {version} runs CUDA {cuda[0]}.{cuda[1]} at most, and torch {build.version} needs "
        f"{build.cuda}: install {f'driver {newer}' if newer else 'a driver for it'} or newer, or "
        "a torch for an older CUDA."
    )


def card_unfit(build: TorchBuild, capability: tuple[int, int] | None) -> str | None:
    """Say why this torch has no code for a card of that compute capability; None if it has."""
    if build.architectures and capability is not None:
        return _not_built_for(build, capability)
    least = _LEAST_CAPABILITY.get(build.major)
    if least is None or capability is None or capability >= least:
        return None
    return (
        f"Its compute capability is {capability[0]}.{capability[1]}, and torch {build.version} has "
        f"code from {least[0]}.{least[1]} on: install a torch for CUDA {build.major - 1}, or set "
        "models.<name>.device to cpu."
    )


@dataclass(frozen=True, slots=True)
class _Code:
    """Describes code in torch for cards of a capability, or what the driver can build it from
    (PTX)."""

    is_built: bool
    capability: tuple[int, int]
    only: bool  #: for no other capability


def needs_building(build: TorchBuild, capability: tuple[int, int] | None) -> bool:
    """True if the driver must build this torch's code (PTX) for a card at its first use."""
    if capability is None or not build.architectures:
        return False
    codes = _codes(build)
    return _can_be_built(codes, capability) and not _has_code(codes, capability)


def _not_built_for(build: TorchBuild, capability: tuple[int, int]) -> str | None:
    codes = _codes(build)
    if not codes or _has_code(codes, capability) or _can_be_built(codes, capability):
        return None
    known = sorted({code.capability for code in codes})
    listed = ", ".join(f"{major}.{minor}" for major, minor in known)
    cure = f"a torch for CUDA {build.major - 1}" if capability < known[0] else "a newer torch"
    return (
        f"Its compute capability is {capability[0]}.{capability[1]}, and torch {build.version} has "
        f"code for {listed}: install {cure}, or set models.<name>.device to cpu."
    )


def _has_code(codes: Sequence[_Code], capability: tuple[int, int]) -> bool:
    """True if there is code for a card: that of its major version, and of no newer minor one."""
    return any(
        code.capability == capability
        or (not code.only and code.capability[0] == capability[0] and code.capability < capability)
        for code in codes
        if code.is_built
    )


def _can_be_built(codes: Sequence[_Code], capability: tuple[int, int]) -> bool:
    """True if the driver can build code for a card: that of any capability that is not newer."""
    usable = (code.capability for code in codes if not code.is_built and not code.only)
    return any(older <= capability for older in usable)


def _codes(build: TorchBuild) -> list[_Code]:
    found = map(_ARCHITECTURE.fullmatch, build.architectures)
    return [
        _Code(one[1] == "sm", (int(one[2]), int(one[3])), bool(one[4]))
        for one in found
        if one is not None
    ]
