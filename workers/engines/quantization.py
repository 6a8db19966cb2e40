"""Names the formats of fewer bits that weights can have, and what each needs.

Free of torch: the gateway estimates memory by the very sizes that the engines load. Pure, but for
the look at what is installed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType


@dataclass(slots=True, frozen=True)
class Format:
    """Describes a format that linear layers are quantised to while they load."""

    package: str | None  #: whose code quantises; None: no other than torch
    parameter_bytes: float  #: of a weight, with the scales of its block
    row_bytes: int = 0  #: of a row's scale
    capability: tuple[int, int] | None = None  #: the least compute capability of a card


#: The mildest first. A block of nf4 is 64 weights of half a byte with a float32 scale.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "int8": Format(None, 1, 4),
        "fp8": Format(None, 1, 4, (8, 9)),
        "llm_int8": Format("bitsandbytes", 1, 4),
        "nf4": Format("bitsandbytes", 0.5 + 4 / 64),
    }
)

#: What reads weights that come quantised, by the method that a config names: nothing where the
#: library's own code does, to full precision (see UNPACKED). AWQ and GPTQ of 4 bits in their usual
#: packing are read and computed here (text/four_bit_files.py), with nothing more than torch.
READERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "awq": ("gptqmodel",),
        "gptq": ("gptqmodel", "optimum"),
        "bitsandbytes": ("bitsandbytes",),
        "torchao": ("torchao",),
        "compressed-tensors": ("compressed_tensors",),
        "fp8": (),
        "mxfp4": (),
    }
)
#: Methods whose kernels are fetched from a hub at run time, which is never done here: these weights
#: are computed in full precision.
UNPACKED = frozenset({"fp8", "mxfp4"})
WIDENED = UNPACKED | {"compressed-tensors"}  #: and what widens its weights when they are first used

#: What the packages are called where they are installed from, if not by their import name.
_PROJECTS = {"compressed_tensors": "compressed-tensors"}
EXTRA = "bitinglip[quantization]"  #: holds the packages of FORMATS

#: The CPU's product of weights of 4 bits: groups that it knows, and outputs that it keeps together.
_CPU_GROUPS = (32, 64, 128, 256)
_CPU_BLOCK = 64


def has_cpu_layout(outs: int, group: int) -> bool:
    """Return whether a CPU has a product for a layer of 4 bits with so many inputs in a group."""
    return group in _CPU_GROUPS and outs % _CPU_BLOCK == 0


def four_bit_bytes(
    outs: int, ins: int, groups: int, *, scale_bytes: int, ordered: bool, packed: bool
) -> int:
    """Return the bytes of a layer of 4 bits as text/four_bit_files.py makes it.

    ``scale_bytes``: of one scale; ``ordered``: inputs are read in another order; ``packed``: in the
    layout of a CPU's product for bfloat16, where there is one.
    """
    of_group = 2 * 2 if packed and has_cpu_layout(outs, ins // groups) else scale_bytes + 1
    return outs * ins // 2 + groups * outs * of_group + (8 * ins if ordered else 0)


def package_lack(name: str) -> str | None:
    """Say which package a format lacks in this installation; None if it is there."""
    package = FORMATS[name].package
    if package is None or _installed(package):
        return None
    return f"{package} is not installed (install {EXTRA})"


def card_lack(name: str, capability: tuple[int, int] | None) -> str | None:
    """Say why a card of a compute capability has no use for a format; None if it has, and on CPUs,
    which have no capability."""
    least = FORMATS[name].capability
    if least is None or capability is None or capability >= least:
        return None
    return (
        f"it needs a card of compute capability {least[0]}.{least[1]}, and this one has "
        f"{capability[0]}.{capability[1]}"
    )


def reader_lack(method: str) -> str | None:
    """Say why weights that come quantised cannot be read here; None if they can."""
    if method not in READERS:
        known = ", ".join(sorted(READERS))
        return f"are quantised by {method[:40]}, which is none of {known}"
    missing = [package for package in READERS[method] if not _installed(package)]
    if not missing:
        return None
    names = " and ".join(_PROJECTS.get(each, each) for each in missing)
    return f"are quantised by {method}, and {names} is not installed"


def lacks(capability: tuple[int, int] | None) -> dict[str, str | None]:
    """Return what each format lacks here, None for those that a device can run with."""
    return {name: card_lack(name, capability) or package_lack(name) for name in FORMATS}


@cache
def _installed(package: str) -> bool:
    """Tell whether a package is installed; what changes later takes effect at the next start."""
    return find_spec(package) is not None
