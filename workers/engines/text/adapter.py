"""Merges a LoRA into the weights of a model, by the library that trains them."""

import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from workers.engines import torch_env
from workers.engines.torch_env import load_failed

_WEIGHTS = "adapter_model.safetensors"
_FAULT = "The adapter does not load"


def merged(model: Any, folder: Path) -> Any:
    """Return the model with an adapter merged into its weights. Raises Refused.

    The library says nothing of weights that it finds no place for, and takes zeros for missing
    ones; either means that the adapter was made for another model.
    """
    import peft  # takes a second to import, which few models need

    with torch_env.library_errors(_FAULT), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config: Any = peft.PeftConfig.from_pretrained(str(folder), local_files_only=True)
        if not isinstance(config, peft.LoraConfig):
            raise load_failed(f"{_FAULT}: it is no LoRA.")
        config.inference_mode = True
        wrapped = peft.PeftModelForCausalLM(model, config)
        weights = load_file(folder / _WEIGHTS)
        found = peft.set_peft_model_state_dict(wrapped, weights)
        _check(found)
        return wrapped.merge_and_unload(safe_merge=True)


def _check(found: Any) -> None:
    if found.unexpected_keys:
        raise _misfit("the model has no place for", found.unexpected_keys)
    if missing := [key for key in found.missing_keys if "lora_" in key]:
        raise _misfit("it lacks", missing)


def _misfit(what: str, keys: list[str]) -> Exception:
    return load_failed(
        f"{_FAULT}: {what} {min(keys)[:120]}, so it was made for another model than its base."
    )
