"""Tiny LoRAs for tiny models, as peft saves them."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def make_text_lora(
    base: Path, folder: Path, *, named: str = "tiny", seed: int = 7, **config: Any
) -> Path:
    """Return a LoRA with random weights for a text model; ``named``: what it calls its base."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, of versions to come
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **(settings | config)))
    torch.manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(str(folder))
    saved = json.loads((folder / "adapter_config.json").read_text())
    changed = {**saved, "base_model_name_or_path": named}  # the library would look for that one
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    (folder / "README.md").unlink()
    return folder
