"""Reads a LoRA's files as pairs of matrices for linear layers of its base, and checks them.

What changes more than linear layers is not read here: the gateway has it merged into weights.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from workers.engines import torch_env
from workers.engines.torch_env import load_failed
from workers.protocol import TextLora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FAULT = "The adapter does not load"
_PREFIX = "base_model.model."  #: what the library puts before the names of a model's layers
_SECOND = 10**9  #: nanoseconds
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(slots=True, frozen=True)
class LoraPair:
    """Holds what a LoRA adds to a layer: ``x @ a.T @ b``, its scale multiplied in."""

    a: Tensor  #: [rank, in]
    b: Tensor  #: [rank, out]


@dataclass(slots=True, frozen=True, weakref_slot=True)
class LoraWeights:
    """Holds a LoRA's pairs by the paths of their layers in the base."""

    pairs: Mapping[str, LoraPair]

    @property
    def rank(self) -> int:
        """Return the largest rank of a pair."""
        return max(len(each.a) for each in self.pairs.values())


def read_lora(lora: TextLora, layers: Mapping[str, nn.Module], dtype: torch.dtype) -> LoraWeights:
    """Read a LoRA's files for a base with these layers, in a number format.

    Raises Refused if a file is damaged or has changed, or was made for another base.
    """
    folder = Path(lora.path)
    with torch_env.library_errors(FAULT):
        for name, stamp in lora.stamps.items():
            found = (folder / name).stat()
            times = (stamp[1], stamp[1] // _SECOND * _SECOND)  # archives keep whole seconds
            if found.st_size != stamp[0] or found.st_mtime_ns not in times:
                raise load_failed(f"{FAULT}: {name} has changed since it was taken in: verify it.")
        config = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS)
        scales = _Scales(config)
    for name in tensors:
        if not name.endswith((_A, _B)):
            raise load_failed(f"{FAULT}: {name[:120]} is no part of a pair of matrices.")
    pairs = {}
    for name, a in tensors.items():
        if not name.endswith(_A):
            continue
        path = name.removesuffix(_A).removeprefix(_PREFIX)
        b = tensors.get(name.removesuffix(_A) + _B)
        if b is None:
            raise _misfit("it lacks", name.removesuffix(_A) + _B)
        _check(path, a, b, layers.get(path))
        scaled = b.float().t() * scales.of(path, rank=len(a))
        pairs[path] = LoraPair(a.to(dtype), scaled.to(dtype).contiguous())
    if not pairs or 2 * len(pairs) != len(tensors):
        raise load_failed(f"{FAULT}: its matrices are no pairs.")
    matrices = (matrix for each in pairs.values() for matrix in (each.a, each.b))
    if not all(bool(each.isfinite().all()) for each in matrices):
        raise load_failed(f"{FAULT}: its weights are not finite numbers in this format.")
    return LoraWeights(pairs)


def linear_layers(model: nn.Module, head: nn.Module | None) -> dict[str, nn.Module]:
    """Return the layers that a pair may change, by their paths: of those that see each token of a
    step. The ``head`` sees some tokens only, and an expert those that are sent to it."""
    return {
        path: module
        for path, module in model.named_modules()
        if module is not head and ".experts." not in path and sizes(module) is not None
    }


def sizes(module: nn.Module | None) -> tuple[int, int] | None:
    """Return a linear layer's inputs and outputs; None if it is no such layer."""
    if module is None:
        return None
    if type(module).__name__ == "Conv1D":  # GPT-2's: a linear layer that stores its weight turned
        weight: Any = module.weight
        return int(weight.shape[0]), int(weight.shape[1])
    found = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not isinstance(found[0], int) or not isinstance(found[1], int):
        return None
    return found[0], found[1]


class _Scales:
    """Knows by what each pair is scaled, as the library computes it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._alpha = float(config["lora_alpha"])
        self._patterns = {
            str(key): float(alpha) for key, alpha in (config.get("alpha_pattern") or {}).items()
        }
        self._by_root = bool(config.get("use_rslora"))

    def of(self, path: str, *, rank: int) -> float:
        own = (alpha for key, alpha in self._patterns.items() if f".{path}".endswith(f".{key}"))
        alpha = next(own, self._alpha)
        return alpha / (math.sqrt(rank) if self._by_root else rank)


def _check(path: str, a: Tensor, b: Tensor, layer: nn.Module | None) -> None:
    wanted = sizes(layer)
    if wanted is None:
        raise _misfit("the model has no place for", path)
    fits = a.dim() == b.dim() == 2 and len(a) == b.shape[1] > 0
    if not fits or (a.shape[1], b.shape[0]) != wanted:
        raise _misfit("the model's layer is of another size at", path)


def _misfit(what: str, where: str) -> Exception:
    return load_failed(
        f"{FAULT}: {what} {where[:120]}, so it was made for another model than its base."
    )
