"""Holds our own kernels, in Triton; imported only where a model's settings ask for them."""

import importlib.util
import os

import torch

MOST_ROWS = 16  #: that a kernel multiplies with a weight of 8 bits: the least of tensor cores
MOST_FOUR_BIT_ROWS = 64  #: the same of 4 bits, whose widening costs more

GRIDS = (1, 4, 8, 32)  #: parts of a row that are launched: few sizes, so few kernels are compiled
CHUNK = 256  #: positions of a part at least

_LEAST_CAPABILITY = (8, 0)
_LEAST_CAPABILITY_OF_HALVES = (7, 5)
_LEAST_CAPABILITY_OF_FLOAT8 = (8, 9)


def unusable(device: torch.device, dtype: torch.dtype, *, float8: bool = False) -> str | None:
    """Return why the kernels cannot run on a device, or None; ``float8``: they read such numbers.

    Triton's interpreter runs them on a CPU, if TRITON_INTERPRET is set before its first import.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return "the model does not run on a CUDA device"
    least = _LEAST_CAPABILITY_OF_HALVES if dtype == torch.float16 else _LEAST_CAPABILITY
    if float8:
        least = _LEAST_CAPABILITY_OF_FLOAT8
    capability = torch.cuda.get_device_capability(device)
    if capability < least:
        return f"the card's compute capability {'.'.join(map(str, capability))} is too low"
    return None


def lengths_of_variants(longest: int) -> list[int]:
    """Return lengths of sequences, up to ``longest``, of which each needs a kernel of its own."""
    edges = [1, *(each * CHUNK + 1 for each in GRIDS[:-1])]
    return [each for each in edges if each <= longest]
