"""Demo models from data: configurations, and names and shapes of tensors, as real classes wrote
them; the numbers are made here, without torch. The same Python makes the same bytes each time."""

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

_SEED = 20261123


def write_model(
    folder: Path, data: str, weights: Mapping[str, str], scales: Mapping[str, float]
) -> None:
    """Write the files that the package's ``data`` describes.

    ``weights``: the file of each part's tensors; ``scales``: of those that are larger or smaller
    than what keeps the size of everything that goes through.
    """
    found = json.loads(resources.files(__package__).joinpath(data).read_text())
    for name, config in found["files"].items():
        write_json(folder / name, config)
    for part, shapes in found["tensors"].items():
        random = np.random.default_rng([_SEED, len(shapes)])
        tensors = {
            name: _tensor(random, name, shape, scales.get(name, 1.0))
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / weights[part], metadata={"format": "pt"})


def _tensor(
    random: np.random.Generator, name: str, shape: list[int], scale: float
) -> NDArray[np.float32]:
    """Make a tensor: norms do nothing, biases are zero, all else keeps the size of its input."""
    if len(shape) == 1 or math.prod(shape[1:]) == 1:
        return np.full(shape, 0.0 if "bias" in name else scale, np.float32)
    spread = scale / math.sqrt(math.prod(shape[1:]))
    return (random.standard_normal(shape) * spread).astype(np.float32)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
