"""Makes ``demo-text``: a tiny Llama that answers questions about BitingLip.

``python -m scripts.demo_text`` trains it and writes its tokenizer and weights beside this file.
"""

from importlib import resources
from pathlib import Path
from typing import Any

from model_store.demo.weights import write_json

WORDS = 1504
_ROWS = 1536  # of the embedding: spare ones, as real models have
_CONTEXT = 2048
_BEGIN, _END = "<|im_start|>", "<|im_end|>"
TOKENS = (_BEGIN, _END)  #: the first ids
_END_ID = TOKENS.index(_END)
_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": _ROWS,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": _CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "eos_token_id": _END_ID,
    "pad_token_id": _END_ID,
    "dtype": "float32",
}


def make_text_model(folder: Path) -> None:
    """Write config, tokenizer, template and weights in Hugging Face layout."""
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", {"eos_token_id": _END_ID, "do_sample": False})
    write_json(
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
    trained = resources.files(__package__).joinpath("text_model")
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(trained.joinpath(name).read_bytes())
