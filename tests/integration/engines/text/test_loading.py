"""Refusals to load: files that the text engine cannot run, and its messages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BloomConfig, Gemma3TextConfig

from model_store.inspection.context import longest_context
from tests.support.models.text import VOCAB, make_tiny_model, train_tokenizer
from tests.support.text_harness import job, load, run
from workers.engines.base import Refused
from workers.engines.text.loading import max_positions
from workers.protocol import ChatMessage, Sampling, TextJob


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(family, root / family) for family in ("llama", "qwen3")}


def load_refusal(path: Path, **spec: Any) -> str:
    with pytest.raises(Refused) as caught:
        load(path, **spec)
    assert caught.value.code == "MODEL_LOAD_FAILED"
    return caught.value.message


def test_load_with_missing_tensors_is_refused(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "missing" in load_refusal(tmp_path)


def test_config_larger_than_its_weights_is_refused_at_once(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    config = (tmp_path / "config.json").read_text()
    config = config.replace('"num_hidden_layers": 3', '"num_hidden_layers": 100000')
    (tmp_path / "config.json").write_text(config)
    assert "does not fit" in load_refusal(tmp_path)


def test_template_that_does_not_compile_refuses_chats_and_leaves_completions(
    tmp_path: Path,
) -> None:
    engine, ready = load(make_tiny_model("llama", tmp_path, template="{% for %}"))
    assert not ready.has_chat_template
    chat = TextJob(id="a", messages=(ChatMessage("user", "x"),), sampling=Sampling(max_tokens=1))
    with pytest.raises(Refused) as caught:
        engine.prepare(chat)
    assert (caught.value.code, caught.value.param) == ("INVALID_REQUEST", "messages")
    assert "chat template does not compile" in caught.value.message
    assert run(engine, job("b"))["b"].completion_tokens == 12
    engine.close()


def test_index_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    index = '{"weight_map": {"a": "../model.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert "out of the model's folder" in load_refusal(tmp_path)


def test_tokenizer_with_more_ids_than_the_embedding_is_refused(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    tokenizer = train_tokenizer()
    tokenizer.add_tokens([f"<extra{n}>" for n in range(100)])
    tokenizer.save_pretrained(tmp_path)
    assert "embedding" in load_refusal(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_load_of_damaged_files_is_refused(tmp_path: Path, name: str) -> None:
    make_tiny_model("llama", tmp_path)
    (tmp_path / name).write_bytes(b"\xff\xff nonsense" * 10)
    load_refusal(tmp_path)


def test_settings_of_the_load_are_checked(models: dict[str, Path]) -> None:
    assert "dtype" in load_refusal(models["llama"], dtype="int3")
    assert "kv_cache_bytes" in load_refusal(models["llama"], kv_cache_bytes=100)


def test_bfloat16_runs_and_limits_are_reported(models: dict[str, Path]) -> None:
    engine, ready = load(models["qwen3"], dtype="bfloat16", max_context=64, max_batch=3)
    assert (ready.dtype, ready.max_context, ready.slots) == ("bfloat16", 64, 3)
    assert run(engine, *(job(str(n)) for n in range(5)))["4"].completion_tokens == 12
    engine.close()


def test_attention_that_the_engine_does_not_know_is_refused(tmp_path: Path) -> None:
    """Its position biases do not come through the attention interface."""
    config = BloomConfig(vocab_size=VOCAB, hidden_size=48, n_layer=2, n_head=4)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    train_tokenizer().save_pretrained(tmp_path)
    load_refusal(tmp_path)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 64}, 64),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 256),
    ],
)
def test_context_ends_where_a_scaling_of_some_layers_does(
    scaling: dict[str, Any], expected: int
) -> None:
    plain = {"rope_type": "default", "rope_theta": 1e4}
    parts = {"full_attention": {**scaling, "rope_theta": 1e4}, "sliding_attention": plain}
    config = Gemma3TextConfig(max_position_embeddings=256, rope_parameters=parts)
    assert (max_positions(config), longest_context(config.to_dict())) == (expected, expected)
