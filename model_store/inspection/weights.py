"""Reads the headers of a folder's weights, with their index, and compares a config with them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model_store.errors import BadFiles
from model_store.headers import DTYPES, Tensor, read_header
from model_store.inspection.facts import (
    LAYER_FIELDS,
    WIDTH_FIELDS,
    Inspection,
    number,
    objects,
)
from model_store.inspection.files import open_files
from model_store.kinds import read_json
from model_store.names import check_file
from model_store.selection import PICKLES, PICKLES_ALLOWED, WEIGHTS, one_set

CODE = "This model needs code of its own to run, which is never loaded."


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that a library would load from one folder; its index is checked."""
    index, names = one_set(path.name for path in folder.iterdir())
    if index is None:
        if any("-of-" in name for name in names):
            raise BadFiles("The weights are in shards, and their index is missing.")
        names = open_files(folder, names)
        return {key: t for name in names for key, t in read_header(folder / name).items()}
    listed = _indexed(folder, folder / index)
    shards = {name: read_header(folder / name) for name in sorted(set(listed.values()))}
    missing = [tensor for tensor, name in listed.items() if tensor not in shards[name]]
    if missing:
        raise BadFiles(
            f"The index names tensors that their shards do not hold, {min(missing)[:80]} first."
        )
    return {key: tensor for shard in shards.values() for key, tensor in shard.items()}


def check_indices(folder: Path, paths: Iterable[str]) -> None:
    """Check each index, also beside whole weights: diffusers then reads it and not them."""
    for path in paths:
        if f"{WEIGHTS}.index." in path:
            _weight_map(folder / path)


def _indexed(folder: Path, index: Path) -> dict[str, str]:
    """Map each tensor to its shard; every shard is a plain name and exists in this folder."""
    listed = _weight_map(index)
    names = sorted(set(listed.values()))
    for name in names:
        if not (folder / name).is_file():
            raise BadFiles(f"The shard {name} is missing.")
    open_files(folder, names)
    return listed


def _weight_map(index: Path) -> dict[str, str]:
    """Map each tensor to its shard; every shard is a plain name, whether it exists or not."""
    listed = read_json(index).get("weight_map")
    named = isinstance(listed, dict) and all(isinstance(name, str) for name in listed.values())
    if not isinstance(listed, dict) or not listed or not named:
        raise BadFiles(f"{index.name} has no weight_map.")
    for name in sorted(set(listed.values())):
        if "/" in check_file(name) or not name.endswith(WEIGHTS):
            raise BadFiles(f"{index.name} points out of its folder, or to a pickle.")
    return listed


def no_weights(folder: Path) -> BadFiles:
    pickled = any(path.suffix.lower() in PICKLES for path in folder.iterdir())
    if pickled:
        return BadFiles(f"Its weights are pickles, which can run code. {PICKLES_ALLOWED}")
    return BadFiles("Only safetensors are taken, and it has no weights.")


def check_layers(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse a config with more layers than its weights: the library would build for minutes."""
    stacks: dict[str, set[str]] = {}
    for name in tensors:
        layer = re.search(r"(?:^|\.)(\d+)\.", name)
        if layer:
            stacks.setdefault(name[: layer.start()], set()).add(layer[1])
    most = max(map(len, stacks.values()), default=0)
    for part in objects(config):
        for field_name in LAYER_FIELDS:
            claimed = number(part, field_name)
            if claimed is not None and claimed > most:
                raise BadFiles(f"The config claims {claimed} layers; the weights hold {most}.")


def check_widths(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    largest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    for name in ("vocab_size", *WIDTH_FIELDS, "intermediate_size", "n_inner"):
        claimed = number(config, name)
        if claimed is not None and claimed > largest:
            raise BadFiles(f"The config claims a {name} of {claimed}; no tensor is that large.")


def with_weights(found: Inspection, tensors: dict[str, Tensor]) -> Inspection:
    """Add what the headers tell. Raises BadFiles if there is not one number in the tensors."""
    found.parameters = sum(tensor.elements for tensor in tensors.values())
    found.weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
    if not found.weight_bytes:
        raise BadFiles("The weights hold tensors without a single number.")
    found.dtype = dtype_of_most(tensors)
    return found


def dtype_of_most(tensors: dict[str, Tensor]) -> str | None:
    """Return the number format of most of the bytes; None of no bytes."""
    by_type: dict[str, int] = {}
    for tensor in tensors.values():
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + tensor.nbytes
    most = max(by_type, key=lambda name: by_type[name], default=None)
    return None if most is None else DTYPES.get(most, most.lower())
