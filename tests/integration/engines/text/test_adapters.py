"""A model with a LoRA merged into its weights answers as peft's own does."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.models.adapters import make_text_lora
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import job, load, run
from workers.engines.base import Refused
from workers.protocol import TextDone

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(family, root / family) for family in ("llama", "gpt2")}


def answer(base: Path, adapter: Path | None) -> tuple[TextDone, list[int]]:
    """Return the answer and the tokens of its prompt."""
    engine, _ = load(base, adapter=None if adapter is None else str(adapter))
    try:
        end = run(engine, job("a", max_tokens=16, temperature=0.0, logprobs=0))["a"]
        return end, engine._loaded.tokenizer("one two")["input_ids"]
    finally:
        engine.close()


@torch.inference_mode()
def expected(base: Path, adapter: Path, tokens: list[int]) -> torch.Tensor:
    """Return the log-probabilities of each token, by the model with its adapter apart."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(model, adapter).eval()
    logs: torch.Tensor = wrapped(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    return logs


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"use_dora": True, "target_modules": ["v_proj", "down_proj"]}),
        (
            "llama",
            {"use_rslora": True, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        ),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    ],
)
def test_adapter_of_a_text_model_is_computed_as_by_its_library(
    models: dict[str, Path], tmp_path: Path, family: str, config: dict[str, Any]
) -> None:
    base = models[family]
    adapter = make_text_lora(base, tmp_path / "lora", **config)
    end, prompt = answer(base, adapter)
    said = [one.id for one in end.choices[0].logprobs]
    logs = expected(base, adapter, prompt + said)[len(prompt) - 1 : -1]
    assert said == logs.argmax(-1).tolist()
    told = torch.tensor([one.logprob for one in end.choices[0].logprobs])
    assert (told - logs.amax(-1)).abs().max() < 1e-4
    assert said != [one.id for one in answer(base, None)[0].choices[0].logprobs]


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(Refused) as caught:
        load(base, adapter=str(adapter))
    assert caught.value.code == "MODEL_LOAD_FAILED"
    return caught.value.message


def test_adapter_for_another_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    other = make_tiny_model("qwen3", tmp_path / "qwen3")
    tuned = ["q_norm"]
    for_all = make_text_lora(models["gpt2"], tmp_path / "a", target_modules=["c_attn"])
    assert "The adapter does not load" in refusal(models["llama"], for_all)
    bias = make_text_lora(other, tmp_path / "b", modules_to_save=tuned)
    assert "The adapter does not load" in refusal(models["llama"], bias)


def test_adapter_with_more_layers_than_its_base_is_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """The library would leave out what it finds no place for."""
    adapter = make_text_lora(models["llama"], tmp_path / "lora")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for fields in ({"target_modules": ["q_proj"]}, {"target_modules": ["q_proj", "k_proj"]}):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, **fields}))
        assert "another model than its base" in refusal(models["llama"], adapter)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_adapter_whose_files_are_damaged_is_refused(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    adapter = make_text_lora(models["llama"], tmp_path / "lora")
    (adapter / name).write_bytes(b"\xff\xff nonsense" * 10)
    refusal(models["llama"], adapter)
