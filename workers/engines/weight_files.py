"""Checks the headers of a folder's weights before a library reads them."""

import json
import struct
from pathlib import Path

from workers.engines.torch_env import load_failed

_LONGEST_HEADER = 100_000_000


def check_sizes(folder: Path, *, layers: int, hidden: int, vocab: int) -> None:
    """Check that the index points into the folder, and the config is not larger than the weights.

    Raises Refused with MODEL_LOAD_FAILED.

    The library follows any path in an index, and builds all layers of a config before it looks
    at the weights: a config of 100,000 layers over a small file would never end.
    """
    tensors: dict[str, list[int]] = {}
    for path in _weight_files(folder):
        tensors |= _shapes(path)
    sizes = [_product(shape) for shape in tensors.values()]
    if layers > len(tensors) or hidden * vocab > sum(sizes) or hidden > max(sizes, default=0):
        raise load_failed("The model's config.json does not fit its weights.")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise load_failed("The index of the weights is not valid.") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise load_failed("The index of the weights points out of the model's folder.")
        if not (folder / name).is_file():
            raise load_failed(f"The model has no file {name}.")
    return [folder / name for name in names]


def _shapes(path: Path) -> dict[str, list[int]]:
    """Return the names and shapes of a .safetensors file's tensors, from its header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LONGEST_HEADER, path.stat().st_size):
                raise load_failed(f"The header of {path.name} is not valid.")
            header = json.loads(file.read(length))
        return {name: t["shape"] for name, t in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise load_failed(f"The header of {path.name} is not valid.") from error


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
