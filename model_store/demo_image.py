"""``demo-image``: a tiny Stable Diffusion whose tokenizer and weights are made here, without torch.

Configurations, and the names and shapes of all tensors, are data (``demo_image.json``), as the
real classes wrote them. The same Python makes the same bytes each time.
"""

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import pre_tokenizers

_SEED = 20261123
_PROMPT_TOKENS = 77
_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
#: Makes the colours strong: random decoders otherwise paint everything a middle grey.
_LAST_LAYER, _CONTRAST = "decoder.conv_out.weight", 1.2


def make_image_model(folder: Path) -> None:
    """Write a pipeline in diffusers' layout: eight pixels a latent, attention at the lowest size
    only, so that large pictures stay bearable on a CPU."""
    data = json.loads(resources.files(__package__).joinpath("demo_image.json").read_text())
    _write(folder / "model_index.json", _INDEX)
    for name, config in data["files"].items():
        _write(folder / name, config)
    for part, shapes in data["tensors"].items():
        random = np.random.default_rng([_SEED, len(shapes)])
        tensors = {name: _tensor(random, name, shape) for name, shape in shapes.items()}
        save_file(tensors, folder / part / _WEIGHTS[part], metadata={"format": "pt"})
    _write_tokenizer(folder / "tokenizer")


def _tensor(random: np.random.Generator, name: str, shape: list[int]) -> NDArray[np.float32]:
    """Norms do nothing, biases are zero, all else keeps the size of what goes through it."""
    if len(shape) == 1:
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    spread = 1.0 / math.sqrt(math.prod(shape[1:]))
    spread *= _CONTRAST if name == _LAST_LAYER else 1.0
    return (random.standard_normal(shape) * spread).astype(np.float32)


def _write_tokenizer(folder: Path) -> None:
    """Every byte is a word's letter or its last one; so every text can be encoded."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), _BEGIN, _END]
    folder.mkdir(exist_ok=True)
    _write(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    marks = {"bos_token": _BEGIN, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    _write(folder / "special_tokens_map.json", marks)
    _write(
        folder / "tokenizer_config.json",
        {**marks, "tokenizer_class": "CLIPTokenizer", "model_max_length": _PROMPT_TOKENS},
    )


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
