"""Writes LoRAs by hand, without torch: for the layers of a model's files that they are made for."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

RANK = 2
_TUNED = re.compile(r"(?P<layer>.*\.(?:q_proj|up_proj|to_q))\.weight")


def write_text_lora(base: Path, folder: Path, *, named: str, **config: Any) -> Path:
    """Return a LoRA for some layers of a text model, as peft saves it; ``named``: its base's
    name."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": named,
        "r": RANK,
        "lora_alpha": 64,
        "target_modules": ["q_proj", "up_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(told | config))
    tensors = _pairs(base / "model.safetensors", "base_model.model.")
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def write_image_lora(base: Path, folder: Path, *, named: str) -> Path:
    """Return a LoRA for the denoiser of a pipeline, as people publish them: a file and a card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = base / "unet/diffusion_pytorch_model.safetensors"
    save_file(_pairs(weights, "unet."), folder / "pytorch_lora_weights.safetensors")
    (folder / "README.md").write_text(f"---\nbase_model: {named}\nlicense: mit\n---\n")
    return folder


def _pairs(weights: Path, prefix: str) -> dict[str, Any]:
    """Return a pair of random matrices for each layer that is tuned."""
    random = np.random.default_rng(1)
    tensors: dict[str, Any] = {}
    with safe_open(weights, "np") as file:
        for name in file.keys():  # noqa: SIM118  this one is not iterable
            if found := _TUNED.fullmatch(name):
                rows, columns = file.get_slice(name).get_shape()
                pair = {"A": (RANK, columns), "B": (rows, RANK)}
                for letter, shape in pair.items():
                    key = f"{prefix}{found['layer']}.lora_{letter}.weight"
                    tensors[key] = random.standard_normal(shape).astype(np.float32)
    return tensors
