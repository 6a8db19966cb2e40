"""Makes ``demo-embedding``: a two-layer BERT whose tokenizer and weights are made here, without
torch.

Its positions count for nothing and its layers for little, so a vector is about the mean of its
words. The same Python makes the same bytes each time.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import processors

from model_store.demo.weights import write_json
from model_store.demo.words import ROWS, WORDS, train_tokenizer

_SEED = 20261127
_HIDDEN, _INNER, _LAYERS, _HEADS = 64, 128, 2, 4
_CONTEXT = 512
_TOKENS = ["[PAD]", "[CLS]", "[SEP]"]  #: the first ids
_MODULES = "sentence_transformers.models"


def make_embedding_model(folder: Path) -> None:
    """Write config, tokenizer, modules and weights in the layout of sentence-transformers."""
    _write_tokenizer(folder)
    write_json(folder / "config.json", _config())
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"{_MODULES}.{name}"}
        for index, (name, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    pooling = {"word_embedding_dimension": _HIDDEN, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    limits = {"max_seq_length": _CONTEXT, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", limits)
    prompts = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None}
    write_json(folder / "config_sentence_transformers.json", prompts)
    save_file(_weights(), folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(folder: Path) -> None:
    tokenizer = train_tokenizer(_TOKENS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "model_max_length": _CONTEXT,
            "clean_up_tokenization_spaces": False,
        },
    )


def _config() -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": ROWS,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "max_position_embeddings": _CONTEXT,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "dtype": "float32",
    }


def _weights() -> dict[str, NDArray[np.float32]]:
    noise = np.random.default_rng(_SEED)
    tensors: dict[str, NDArray[np.float32]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        spread = 0.3 / inputs**0.5
        weight = noise.standard_normal((outputs, inputs)) * spread
        tensors[f"{name}.weight"] = weight.astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(outputs, np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(_HIDDEN, np.float32)
        tensors[f"{name}.bias"] = np.zeros(_HIDDEN, np.float32)

    words = noise.standard_normal((ROWS, _HIDDEN)).astype(np.float32)
    words[: len(_TOKENS)] = 0  # they say nothing of a text
    words[WORDS:] = 0  # no text belongs to these
    tensors["embeddings.word_embeddings.weight"] = words
    tensors["embeddings.position_embeddings.weight"] = np.zeros((_CONTEXT, _HIDDEN), np.float32)
    tensors["embeddings.token_type_embeddings.weight"] = np.zeros((2, _HIDDEN), np.float32)
    norm("embeddings.LayerNorm")
    for layer in range(_LAYERS):
        at = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{at}.attention.self.{part}", _HIDDEN, _HIDDEN)
        linear(f"{at}.attention.output.dense", _HIDDEN, _HIDDEN)
        norm(f"{at}.attention.output.LayerNorm")
        linear(f"{at}.intermediate.dense", _INNER, _HIDDEN)
        linear(f"{at}.output.dense", _HIDDEN, _INNER)
        norm(f"{at}.output.LayerNorm")
    return tensors
