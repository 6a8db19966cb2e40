"""Finds out at load whether a model's output is numbers, before a request meets what is none.

float16 overflows in some models, and computes NaN on some cards; float32 does neither. The gateway
loads the model once more in float32 when a load is refused for that.
"""

from collections.abc import Callable

import torch

from workers.engines.activity import busy_with
from workers.engines.base import Refused
from workers.engines.torch_env import dtype_name
from workers.faults import NO_NUMBERS


def check_numbers(dtype: torch.dtype, compute: Callable[[], torch.Tensor]) -> None:
    """Compute something small of a model in float16; other formats are taken to be wide enough.

    Raises Refused if some of it is not finite.
    """
    if dtype is not torch.float16:
        return
    with busy_with("warmup"):
        has_numbers = bool(compute().isfinite().all())
    if not has_numbers:
        raise no_numbers(dtype)


def no_numbers(dtype: torch.dtype) -> Refused:
    """Return the refusal of a model whose output is no number in this format."""
    text = f"The model's output is not a number in {dtype_name(dtype)}."
    if dtype is not torch.float16:  # no format has a wider range
        return Refused("MODEL_LOAD_FAILED", text)
    return Refused("MODEL_LOAD_FAILED", f"{text} {NO_NUMBERS.sentence}", fault=NO_NUMBERS.name)
