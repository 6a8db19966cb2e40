"""Tiny text models that the paged cache cannot hold: recurrent ones and hybrids."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from tests.support.models.text import VOCAB, write_model

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 8}
_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_OWN: dict[str, dict[str, Any]] = {
    "mamba2": {"state_size": 8, "num_heads": 6, "head_dim": 16, "n_groups": 2, "expand": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 16},
    "qwen3_next": {
        **_LINEAR,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_5_text": _LINEAR,
    "granitemoehybrid": {
        **_MAMBA,
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_groups": 1,
        "num_local_experts": 0,
        "shared_intermediate_size": 32,
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 96},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 48},
}
#: Those that run; a Recurrent Gemma keeps one state for all sequences, in its layers.
FAMILIES = tuple(name for name in _OWN if name != "recurrent_gemma")


def make_sequential_model(family: str, folder: Path) -> Path:
    """Write a model with its tokenizer to ``folder``."""
    config = AutoConfig.for_model(family, **{**_SHAPE, **_OWN[family], "initializer_range": 0.3})
    return write_model(config, folder, seed=sum(family.encode()))
