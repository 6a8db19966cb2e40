"""Tiny embedding models of real architectures in sentence-transformers' layout, for tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    Gemma3TextConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    Qwen3Config,
    XLMRobertaConfig,
)

from tests.support.models.text import BOS, EOS, VOCAB, train_tokenizer

WIDTH = 32
_ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "pad_token_id": 1,
    "initializer_range": 0.3,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8}
_CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "bert": (BertConfig, _ENCODER),
    "distilbert": (
        DistilBertConfig,
        {
            "vocab_size": VOCAB,
            "dim": WIDTH,
            "hidden_dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 130,
            "pad_token_id": 1,
        },
    ),
    "gemma3": (Gemma3TextConfig, {**_DECODER, "use_bidirectional_attention": True}),
    "modernbert": (
        ModernBertConfig,
        {**_ENCODER, "cls_token_id": 0, "sep_token_id": 1, "local_attention": 8},
    ),
    "mpnet": (MPNetConfig, _ENCODER),
    "qwen3": (Qwen3Config, _DECODER),
    "xlm-roberta": (XLMRobertaConfig, _ENCODER),
}
FAMILIES = tuple(_CONFIGS)


def make(
    folder: Path,
    family: str = "bert",
    *,
    pooling: Mapping[str, Any] | None = None,
    dense: Sequence[tuple[int, str]] = (),
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    default_prompt: str | None = None,
    transformer: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model. dense: outputs and activation of each layer after the pooling."""
    cls, settings = _CONFIGS[family]
    torch.manual_seed(sum(family.encode()))
    config = cls(**settings)
    AutoModel.from_config(config, dtype=torch.float32).eval().save_pretrained(folder)
    _write_tokenizer(folder)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    found = pooling or {"pooling_mode_mean_tokens": True}
    _write(folder / "1_Pooling/config.json", {"word_embedding_dimension": WIDTH, **found})
    inputs = WIDTH
    for number, (outputs, activation) in enumerate(dense, 2):
        modules.append(("Dense", f"{number}_Dense"))
        _write_dense(folder / f"{number}_Dense", inputs, outputs, activation)
        inputs = outputs
    if normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
        (folder / modules[-1][1]).mkdir()
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{name}"}
        for n, (name, path) in enumerate(modules)
    ]
    _write(folder / "modules.json", listed)
    _write(folder / "sentence_bert_config.json", transformer or {"max_seq_length": 100})
    overall = {"prompts": prompts or {}, "default_prompt_name": default_prompt}
    _write(folder / "config_sentence_transformers.json", overall)
    return folder


def make_reranker(
    folder: Path,
    family: str = "bert",
    *,
    labels: int = 1,
    config: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
) -> Path:
    """Write a cross-encoder. config: of config.json; own: of the library's file, if it has one."""
    cls, settings = _CONFIGS[family]
    torch.manual_seed(sum(family.encode()))
    made = cls(**settings, num_labels=labels, **(config or {}))
    model = AutoModelForSequenceClassification.from_config(made, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    if own is not None:
        transformer = {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.base.modules.transformer.Transformer",
        }
        _write(folder / "modules.json", [transformer])
        _write(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder", **own})
        task = {"transformer_task": "sequence-classification", "module_output_name": "scores"}
        output = {"text": {"method": "forward", "method_output_name": "logits"}}
        _write(folder / "sentence_bert_config.json", {**task, "modality_config": output})
    return folder


def _write_tokenizer(folder: Path) -> None:
    tokenizer = train_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {EOS} $B:1 {EOS}:1",
        special_tokens=[(BOS, 0), (EOS, 1)],
    )
    tokenizer.pad_token = EOS
    tokenizer.save_pretrained(folder)


def _write_dense(folder: Path, inputs: int, outputs: int, activation: str) -> None:
    config = {
        "in_features": inputs,
        "out_features": outputs,
        "bias": True,
        "activation_function": f"torch.nn.modules.{activation}",
    }
    _write(folder / "config.json", config)
    torch.manual_seed(outputs)
    weights = {"linear.weight": torch.randn(outputs, inputs), "linear.bias": torch.randn(outputs)}
    save_file(weights, folder / "model.safetensors")


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
