"""Tells what memory a model will take, from its configs and its weights' sizes."""

from collections.abc import Mapping
from pathlib import Path

from model_store.inspection.facts import Inspection, check_numbers
from model_store.inspection.pipeline import describe_index, note_config
from model_store.inspection.transformer import describe_config
from model_store.kinds import read_json
from model_store.selection import INDEX

_BITS = {"float64": 64, "float32": 32, "float8_e4m3fn": 8, "float8_e5m2": 8, "int8": 8, "uint8": 8}


def inspect_ahead(
    folder: Path, kind: str, weights: Mapping[str, int], dtype: str | None
) -> Inspection:
    """Return what is known of a model whose configs alone are in the folder.

    ``weights`` are the bytes of its files of weights, by path; ``dtype`` the number format of most
    of them, None: what the config names. Raises BadFiles.
    """
    if kind == "image":
        index = read_json(folder / INDEX)
        found = describe_index(folder, index)
        for path, size in weights.items():
            part = path.partition("/")[0]
            if part not in found.components and (folder / part / "config.json").is_file():
                note_config(found, folder, part)
            found.components[part] = found.components.get(part, 0) + size
    else:
        config = read_json(folder / "config.json")
        check_numbers(config)
        found = describe_config(folder, kind, config)
    found.dtype = dtype or found.config_dtype
    found.weight_bytes = sum(weights.values())
    found.parameters = found.weight_bytes * 8 // _BITS.get(found.dtype or "", 16)
    return found
