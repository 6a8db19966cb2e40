"""Loads an image pipeline; nothing is fetched, unpickled or executed.

Any fault of the files raises :class:`Refused` with MODEL_LOAD_FAILED.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import safe_open

from workers.engines import torch_env
from workers.engines.torch_env import (
    check_missing,
    library_errors,
    load_failed,
)
from workers.protocol import Load

INDEX = "model_index.json"
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_DENOISERS = ("transformer", "unet")
#: name of a file of weights: the variant that it holds, and its number where there are several
_WEIGHTS = re.compile(r"[^.]+(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


@dataclass(slots=True, frozen=True)
class LoadedPipeline:
    pipe: Any
    dtype: torch.dtype
    device: torch.device


def load(spec: Load, progress: Callable[[float], None]) -> LoadedPipeline:
    """Load the pipeline of ``spec``: its models go to the device one by one, each before the next
    is read, but to host memory where the settings offload them. Raises :class:`Refused`.
    """
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    folder = Path(spec.path)
    device = torch_env.device(spec)
    index = _index(folder)
    dtype = torch_env.choose_dtype("image", spec, device, _stored_dtype(folder))
    offload = spec.image.offload if spec.image is not None else "none"
    keep = device.type == "cpu" or offload != "none"
    parts = load_models(
        folder, index, dtype, progress, lambda model: model if keep else model.to(device)
    )
    with library_errors("The pipeline does not load"):
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **parts
        )
    pipe.set_progress_bar_config(disable=True)
    return LoadedPipeline(pipe, dtype, device)


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text())
        if not isinstance(index["_class_name"], str):
            raise load_failed("The model brings its own code, which is not run.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise load_failed(f"The model's {INDEX} is not valid.") from error
    return dict(index)


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the number format of those of the denoiser's files that will be loaded."""
    for part in _DENOISERS:
        for path in _weights(folder / part).get(_variant(folder / part), []):
            fault = f"The weights of {part} do not load"
            with library_errors(fault), safe_open(path, "pt") as weights:
                name = next(iter(weights.keys()))
                return _STORED.get(weights.get_slice(name).get_dtype(), torch.bfloat16)
    return torch.bfloat16


def load_models(
    folder: Path,
    index: dict[str, Any],
    dtype: torch.dtype,
    progress: Callable[[float], None],
    place: Callable[[Any], Any],
) -> dict[str, Any]:
    """Load the pipeline's models, each by itself and placed before the next one is read.

    Only so does the library say which tensors were missing; in their place it puts random ones.
    ``progress`` gets the part of their bytes that is there.
    """
    classes = {name: _class_of(value) for name, value in index.items() if not name.startswith("_")}
    known = {name: found for name, found in classes.items() if found is not None}
    sizes = {name: _weight_bytes(folder / name) for name in known}
    models: dict[str, Any] = {}
    for name, model_class in known.items():
        models[name] = place(_model(folder / name, model_class, dtype))
        progress(sum(sizes[each] for each in models) / max(1, sum(sizes.values())))
    return models


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _class_of(value: Any) -> Any:
    """Return the class of a model of the two libraries; None for schedulers, tokenizers, etc."""
    if not isinstance(value, list) or len(value) != 2 or value[0] not in _LIBRARIES:
        return None
    found = getattr(_LIBRARIES[value[0]], str(value[1]), None)
    is_model = isinstance(found, type) and issubclass(found, torch.nn.Module)
    return found if is_model else None


def _model(folder: Path, model_class: Any, dtype: torch.dtype) -> Any:
    own = {"trust_remote_code": False} if model_class.__module__.startswith("transformers") else {}
    with library_errors(f"The weights of {folder.name} do not load"):
        model, info = model_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            variant=_variant(folder),
            **own,
        )
    check_missing(info["missing_keys"], f"the weights of {folder.name}")
    return model.eval().requires_grad_(False)


def _variant(folder: Path) -> str | None:
    """Return ``fp16`` if the weights are there in half precision only."""
    found = _weights(folder)
    return "fp16" if "fp16" in found and None not in found else None


def _weights(folder: Path) -> dict[str | None, list[Path]]:
    """Return the files of weights by their variant, in the order of their names."""
    found: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if match := _WEIGHTS.fullmatch(path.name):
            found.setdefault(match["variant"], []).append(path)
    return found
