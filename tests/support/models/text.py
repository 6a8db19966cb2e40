"""Tiny models of real architectures with random weights, made on the spot for tests."""

import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 384  #: of the embedding; the tokenizer has fewer
EOS = "<|end|>"
BOS = "<|begin|>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
SLIDING_WINDOW = 8

_CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {**_SHAPE, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {**_SHAPE, "tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, {**_SHAPE, "tie_word_embeddings": False}),
    "mistral": (MistralConfig, {**_SHAPE, "sliding_window": SLIDING_WINDOW}),
    "gemma2": (
        Gemma2Config,
        {
            **_SHAPE,
            "sliding_window": SLIDING_WINDOW,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": False,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "phi3": (Phi3Config, {**_SHAPE, "sliding_window": SLIDING_WINDOW, "pad_token_id": 0}),
    "olmo2": (Olmo2Config, {**_SHAPE, "tie_word_embeddings": False}),
    "granite": (GraniteConfig, {**_SHAPE, "residual_multiplier": 0.5}),
    "gpt_oss": (
        GptOssConfig,
        {
            **_SHAPE,
            "sliding_window": SLIDING_WINDOW,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": False,
        },
    ),
    "gpt2": (
        GPT2Config,
        {"vocab_size": VOCAB, "n_positions": 256, "n_embd": 48, "n_layer": 3, "n_head": 4},
    ),
}
FAMILIES = tuple(_CONFIGS)


def make_tiny_model(family: str, folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """Write a model with its tokenizer to ``folder``; the same files for the same family."""
    cls, settings = _CONFIGS[family]
    # A wide initialisation: with the usual one, random models repeat one token for ever.
    config = cls(**settings, initializer_range=0.3)
    return write_model(config, folder, seed=sum(family.encode()), template=template)


def small_llama(**changed: Any) -> LlamaConfig:
    """Return the configuration of a Llama of two layers, as wide as a block of every format of
    quantised weights, and with grouped heads."""
    return LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            **changed,
        }
    )


def write_model(
    config: PretrainedConfig, folder: Path, *, seed: int, template: str | None = TEMPLATE
) -> Path:
    """Write a model of a configuration, with random weights, and the tokenizer of all of them."""
    tokenizer = train_tokenizer(template)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on docstrings of the standard library."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 16,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [inspect.getdoc(thing) or "" for thing in (json, inspect, Path, dict, str)]
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def write_script(folder: Path, prompt_token: int, script: list[int]) -> None:
    """Set a tiny Llama's weights by hand: after ``prompt_token`` it says ``script``, and so on.

    No id may come twice. Attention and MLP give zero, so the next token depends on the last one.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        embedding = torch.zeros(VOCAB, model.config.hidden_size)
        head = torch.zeros(VOCAB, model.config.hidden_size)
        chain = [prompt_token, *script]
        for place, (token, following) in enumerate(pairwise(chain)):
            embedding[token, place] = 1.0
            head[following, place] = 1.0
        model.config.tie_word_embeddings = False
        model.model.embed_tokens.weight = torch.nn.Parameter(embedding)
        model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder)
