"""Inspects diffusers pipelines: their index, their components and the widths that decide memory."""

from pathlib import Path
from typing import Any

from model_store.errors import BadFiles
from model_store.headers import Tensor
from model_store.image_size import own_side
from model_store.inspection.facts import Inspection, check_numbers, number
from model_store.inspection.weights import CODE, check_layers, no_weights, weights, with_weights
from model_store.kinds import known_names, read_json
from model_store.names import check_file
from model_store.selection import INDEX

_LATENTS_PER_TOKEN = 4  #: image transformers read patches of two by two


def components(index: dict[str, Any]) -> list[str]:
    """Return the folders that a pipeline's index names. Raises BadFiles for foreign code."""
    found = []
    known = {"diffusers", "transformers"} | known_names("pipeline modules")
    for part, value in index.items():
        if isinstance(value, list) and not part.startswith("_"):
            library = value[0] if value else None
            if library is None:
                continue  # a component that this pipeline goes without
            if not isinstance(library, str) or library not in known or "/" in check_file(part):
                raise BadFiles(CODE)
            if len(value) != 2 or not isinstance(value[1], str) or not value[1].isidentifier():
                raise BadFiles(f"{INDEX}: {part[:80]} does not name a class.")
            found.append(part)
    return found


def check_index(folder: Path) -> None:
    """Raise BadFiles for a pipeline that is not run, or that lacks a component."""
    index = read_json(folder / INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise BadFiles(CODE)
    if name not in known_names("image"):
        raise BadFiles(f"The pipeline '{name[:80]}' does not make images from text.")
    for part in components(index):
        if not (folder / part).is_dir():
            raise BadFiles(f"The pipeline's component {part[:80]} is missing.")


def inspect_pipeline(folder: Path) -> Inspection:
    """Inspect a folder whose index is good. Raises BadFiles."""
    index = read_json(folder / INDEX)
    model = describe_index(folder, index)
    tensors: dict[str, Tensor] = {}
    for part in components(index):
        found = weights(folder / part)
        if (folder / part / "config.json").exists():  # of models only, not of tokenizers
            if not found:
                raise no_weights(folder / part)
            check_layers(note_config(model, folder, part), found)
            model.components[part] = sum(tensor.nbytes for tensor in found.values())
        tensors |= {f"{part}/{name}": tensor for name, tensor in found.items()}
    if not tensors:
        raise BadFiles("There are no safetensors weights in this pipeline.")
    return with_weights(model, tensors)


def describe_index(folder: Path, index: dict[str, Any]) -> Inspection:
    """Return what the texts of a pipeline tell, without those of its components."""
    model = Inspection("image", "image", architecture=index["_class_name"])
    model.capabilities = ("text-to-image",)
    model.image_side = own_side(folder)
    return model


def note_config(model: Inspection, folder: Path, part: str) -> dict[str, Any]:
    """Record what a component's config tells; return it. Raises BadFiles."""
    config = read_json(folder / part / "config.json")
    check_numbers(config, f"{part}/config.json")
    _note_widths(model, part, config)
    return config


def _note_widths(model: Inspection, part: str, config: dict[str, Any]) -> None:
    """Record the widths that decide the memory of activations."""
    channels = config.get("block_out_channels")
    first = channels[0] if isinstance(channels, list) and channels else None
    width = first if isinstance(first, int) and first > 0 else 0
    if part == "vae":
        model.decoder_width = width
    elif part == "unet":
        model.denoiser_width = width
    elif part == "transformer":
        heads = number(config, "num_attention_heads") or 0
        hidden = number(config, "hidden_size", "dim", "inner_dim") or heads * (
            number(config, "attention_head_dim") or 0
        )
        model.denoiser_width = hidden // _LATENTS_PER_TOKEN
