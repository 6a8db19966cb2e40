"""Reads a model's config as its library does, and takes no offence at odd number formats in it.

The library takes what ``dtype`` (before it ``torch_dtype``) names for an attribute of torch, and
raises for "auto", which files name that were saved by other tools.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from workers.engines.torch_env import load_failed

_KEYS = ("dtype", "torch_dtype")


def library_config(folder: Path, config_class: Any = transformers.AutoConfig) -> Any:
    """Return the config of a folder; a format that is none counts as one that is not named.

    Raises what the library raises, or Refused for a model that brings code.
    """
    raw = json.loads((folder / "config.json").read_text())
    if "auto_map" in raw:
        raise load_failed("The model brings its own code, which is not run.")
    known = _without_odd_formats(raw)
    if known == raw:
        return config_class.from_pretrained(folder, local_files_only=True)
    if config_class is transformers.AutoConfig:
        config_class = transformers.CONFIG_MAPPING[raw["model_type"]]
    return config_class.from_dict(known)


def _without_odd_formats(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: _without_odd_formats(each)
        for key, each in value.items()
        if key not in _KEYS or _is_format(each)
    }


def _is_format(named: Any) -> bool:
    if named is None:
        return True
    return isinstance(named, str) and isinstance(getattr(torch, named, None), torch.dtype)
