"""``demo-text``: a two-layer Llama whose tokenizer and weights are made here, without torch.

The same Python makes the same bytes each time.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from model_store.demo.words import ROWS, WORDS, train_tokenizer

_SEED = 20261123
_HIDDEN, _INNER, _LAYERS, _HEADS, _KV_HEADS, _HEAD_DIM = 64, 128, 2, 4, 2, 16
_CONTEXT = 2048
_BEGIN, _END = "<|im_start|>", "<|im_end|>"
_TOKENS = [_BEGIN, _END]  #: the first ids
_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_text_model(folder: Path) -> None:
    """Write config, tokenizer, template and weights in Hugging Face layout."""
    tokenizer = train_tokenizer(_TOKENS)
    end = _TOKENS.index(_END)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "config.json", _config(end))
    _write(folder / "generation_config.json", {"eos_token_id": end, "do_sample": False})
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": _END,
            "pad_token": _END,
            "model_max_length": _CONTEXT,
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    save_file(_weights(), folder / "model.safetensors", metadata={"format": "pt"})


def _config(end: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": ROWS,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": _CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "eos_token_id": end,
        "pad_token_id": end,
        "dtype": "float32",
    }


def _weights() -> dict[str, NDArray[np.float32]]:
    noise = np.random.Generator(np.random.PCG64(_SEED))

    def matrix(rows: int, columns: int, scale: float = 1.0) -> NDArray[np.float32]:
        values = noise.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(scale * columns**-0.5)

    def ones() -> NDArray[np.float32]:
        return np.ones(_HIDDEN, dtype=np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(ROWS, _HIDDEN, 4.0),
        "model.norm.weight": ones(),
    }
    tensors["model.embed_tokens.weight"][WORDS:] = 0  # no text belongs to these
    kv = _KV_HEADS * _HEAD_DIM
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.input_layernorm.weight": ones(),
            f"{at}.post_attention_layernorm.weight": ones(),
            f"{at}.self_attn.q_proj.weight": matrix(_HIDDEN, _HIDDEN, 2.0),
            f"{at}.self_attn.k_proj.weight": matrix(kv, _HIDDEN, 2.0),
            f"{at}.self_attn.v_proj.weight": matrix(kv, _HIDDEN, 2.0),
            f"{at}.self_attn.o_proj.weight": matrix(_HIDDEN, _HIDDEN, 2.0),
            f"{at}.mlp.gate_proj.weight": matrix(_INNER, _HIDDEN, 2.0),
            f"{at}.mlp.up_proj.weight": matrix(_INNER, _HIDDEN, 2.0),
            f"{at}.mlp.down_proj.weight": matrix(_HIDDEN, _INNER, 2.0),
        }
    return tensors


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
