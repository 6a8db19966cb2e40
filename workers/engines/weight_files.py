"""Checks the headers of a folder's weights before a library reads them."""

import json
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from workers.engines.torch_env import load_failed

_LONGEST_HEADER = 100_000_000
_INDEX = "model.safetensors.index.json"
_VARIANT = re.compile(r"model\.(\w+)\.safetensors|model\.safetensors\.index\.(\w+)\.json", re.ASCII)
_FORMATS = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def check_sizes(folder: Path, *, layers: int, hidden: int, vocab: int) -> None:
    """Check that the index points into the folder, and the config is not larger than the weights.

    Raises Refused with MODEL_LOAD_FAILED.

    The library follows any path in an index, and builds all layers of a config before it looks
    at the weights: a config of 100,000 layers over a small file would never end.
    """
    tensors: dict[str, list[int]] = {}
    for path in weight_files(folder):
        tensors |= _shapes(path)
    sizes = [_product(shape) for shape in tensors.values()]
    if layers > len(tensors) or hidden * vocab > sum(sizes) or hidden > max(sizes, default=0):
        raise load_failed("The model's config.json does not fit its weights.")


def variant_of(folder: Path) -> str | None:
    """Return what a model's files are called beside ``model`` if there are no plain ones: "fp16"
    of ``model.fp16.safetensors``."""
    if any((folder / name).is_file() for name in ("model.safetensors", _INDEX)):
        return None
    names = sorted(path.name for path in folder.iterdir())
    found = (each[1] or each[2] for name in names if (each := _VARIANT.fullmatch(name)))
    return next(found, None)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that the library reads. Raises Refused with MODEL_LOAD_FAILED."""
    variant = variant_of(folder)
    index = folder / (_INDEX if variant is None else f"model.safetensors.index.{variant}.json")
    names = ["model.safetensors" if variant is None else f"model.{variant}.safetensors"]
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


def tensor_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of each tensor by its name. Raises Refused with MODEL_LOAD_FAILED."""
    headers = (_header(path) for path in weight_files(folder))
    return {name: tensor["bytes"] for header in headers for name, tensor in header.items()}


def stored_dtype(folder: Path) -> torch.dtype | None:
    """Return the number format of most of the weights; None if torch has no such format.

    Raises Refused with MODEL_LOAD_FAILED.
    """
    elements: Counter[str] = Counter()
    for path in weight_files(folder):
        for tensor in _header(path).values():
            elements[tensor["dtype"]] += _product(tensor["shape"])
    most = elements.most_common(1)
    return _FORMATS.get(most[0][0]) if most else None


def _shapes(path: Path) -> dict[str, list[int]]:
    """Return the names and shapes of a .safetensors file's tensors, from its header."""
    return {name: tensor["shape"] for name, tensor in _header(path).items()}


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """Return a .safetensors file's header: of each tensor its dtype and its shape."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LONGEST_HEADER, path.stat().st_size):
                raise load_failed(f"The header of {path.name} is not valid.")
            header = json.loads(file.read(length))
        return {
            name: {
                "dtype": str(tensor["dtype"]),
                "shape": list(tensor["shape"]),
                "bytes": int(tensor["data_offsets"][1]) - int(tensor["data_offsets"][0]),
            }
            for name, tensor in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, IndexError) as error:
        raise load_failed(f"The header of {path.name} is not valid.") from error


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
