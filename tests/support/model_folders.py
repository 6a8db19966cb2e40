"""Writes model folders of real files that are small enough to write by hand, without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def llama_tensors(layers: int = 2) -> dict[str, Any]:
    tensors = {"model.embed_tokens.weight": np.zeros((64, 8), np.float16)}
    for layer in range(layers):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = np.ones((16, 8), np.float16)
    return tensors


def llama(folder: Path, **config: Any) -> Path:
    write(folder / "config.json", {**LLAMA, **config})
    write(folder / "tokenizer_config.json", {"chat_template": "{{ messages }}"})
    save_file(llama_tensors(), folder / "model.safetensors")
    return folder


def sharded(folder: Path, **weight_map: str) -> Path:
    """Write the files of a Llama in two shards; ``weight_map`` adds to the index."""
    llama(folder)
    (folder / "model.safetensors").unlink()
    tensors = list(llama_tensors().items())
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file(dict(tensors[:1]), folder / names[0])
    save_file(dict(tensors[1:]), folder / names[1])
    listed = {tensors[0][0]: names[0], **{name: names[1] for name, _ in tensors[1:]}}
    write(folder / "model.safetensors.index.json", {"weight_map": {**listed, **weight_map}})
    return folder


def pipeline(folder: Path, **index: Any) -> Path:
    """Write the files of a Stable Diffusion 1.x: its safety checker's module is named for the
    pipeline."""
    parts = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "image_encoder": [None, None],
        "requires_safety_checker": True,
    }
    write(folder / "model_index.json", {**parts, **index})
    write(folder / "scheduler/scheduler_config.json", {})
    for part, file in (("unet", "diffusion_pytorch_model"), ("safety_checker", "model")):
        write(folder / part / "config.json", {"num_hidden_layers": 1})
        tensors = {"block.0.weight": np.zeros((4, 4), np.float32)}
        save_file(tensors, folder / part / f"{file}.safetensors")
    return folder
