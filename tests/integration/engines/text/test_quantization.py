"""Text models whose linear layers are quantised at load, and files that come quantised."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, TorchAoConfig

from bitinglip.scheduling.placement.estimate import LoadConfig, estimate
from model_store.inspection import inspect
from model_store.manifest import Manifest
from tests.support.models.text import make_tiny_model, write_model
from tests.support.text_harness import job, load, run
from workers.engines import quantization
from workers.engines.base import Refused
from workers.engines.text.loading import load as load_model
from workers.engines.text.quantized import _is_quantized
from workers.protocol import Load, Quantization

FORMATS: tuple[Quantization, ...] = ("int8", "fp8", "llm_int8", "nf4")
TOKENS = 16


def package(name: str) -> Any:
    """Import a package that quantises; what it warns of when it is imported is its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(quantization.FORMATS[name].package)


def setting(name: str) -> Any:
    """What the library is told, as its documentation has it."""
    if name == "llm_int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
        )
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig() if name == "int8" else Float8WeightOnlyConfig())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose layers are as wide as a block of every format."""
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return write_model(config, tmp_path_factory.mktemp("quantized") / "llama", seed=5)


def spec(path: Path, **settings: Any) -> Load:
    return Load(model="tiny", engine="text", path=str(path), dtype="float32", **settings)


def said_of(act: Callable[[], object]) -> str:
    with pytest.raises(Refused) as refused:
        act()
    assert refused.value.code == "MODEL_LOAD_FAILED"
    return refused.value.message


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_quantization_computes_what_the_library_generates(path: Path, name: Quantization) -> None:
    package(name)
    engine, ready = load(path, quantization=name)
    prompt = engine._loaded.tokenizer("one two").input_ids
    answers = run(engine, job("a", max_tokens=TOKENS), job("b", "three", max_tokens=TOKENS))
    engine.close()
    library = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, quantization_config=setting(name)
    )
    ids = torch.tensor([prompt])
    expected = library.generate(
        ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None
    )
    assert ready.quantization == name
    text = engine._loaded.tokenizer.decode(expected[0, len(prompt) :], skip_special_tokens=True)
    assert answers["a"].choices[0].text == text


@pytest.mark.parametrize(("name", "most"), [("int8", 0.1), ("fp8", 0.5), ("nf4", 1.0)])
@pytest.mark.filterwarnings("ignore")
def test_quantization_stays_near_full_precision(
    path: Path, name: Quantization, most: float
) -> None:
    package(name)
    ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        exact = load_model(spec(path)).model(ids).logits
        near = load_model(spec(path, quantization=name)).model(ids).logits
    assert (near - exact).square().mean().sqrt() < most * exact.std()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.filterwarnings("ignore")
def test_quantization_is_counted_by_the_headers(
    tmp_path: Path, family: str, name: Quantization
) -> None:
    """The estimate knows what the library quantises, and what it leaves."""
    package(name)
    folder = make_tiny_model(family, tmp_path / family)
    facts = inspect(folder)
    model = load_model(spec(folder, quantization=name)).model
    quantized = [each for each in model.modules() if _is_quantized(each)]
    assert facts.linear_parameters == sum(each.weight.numel() for each in quantized)
    assert facts.linear_rows == sum(each.weight.shape[0] for each in quantized)
    manifest = manifest_of(facts)
    counted = estimate(manifest, LoadConfig("cuda", quantization=name, dtype="float32")).weights
    assert counted == sum(map(held, {id(each): each for each in model.parameters()}.values()))


def held(parameter: torch.Tensor) -> int:
    """The bytes of a parameter, with its scales."""
    parts = [getattr(parameter, part, None) for part in ("qdata", "scale", "zero_point")]
    found = [part for part in parts if part is not None] or [parameter]
    return sum(part.numel() * part.element_size() for part in found)


def manifest_of(facts: Any) -> Manifest:
    from datetime import UTC, datetime

    created = datetime(2026, 1, 1, tzinfo=UTC)
    return Manifest(name="m", source="test", created_at=created, **vars(facts))


def test_quantization_without_its_package_is_refused_by_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "_installed", lambda _package: False)
    said = said_of(lambda: load_model(spec(path, quantization="nf4")))
    assert "quantization is nf4" in said
    assert "bitsandbytes is not installed" in said


@pytest.mark.filterwarnings("ignore")
def test_quantization_of_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    package("int8")
    folder = make_tiny_model("gpt2", tmp_path / "gpt2")
    said = said_of(lambda: load_model(spec(folder, quantization="int8")))
    assert "no layer of this model is linear" in said
    assert inspect(folder).linear_parameters == 0


@pytest.mark.filterwarnings("ignore")
def test_quantization_to_blocks_that_do_not_divide_a_layer_is_refused(tmp_path: Path) -> None:
    package("nf4")
    folder = make_tiny_model("llama", tmp_path / "llama")  # 48 wide
    assert "multiple of 64" in said_of(lambda: load_model(spec(folder, quantization="nf4")))


def make_gptq(folder: Path, source: Path, method: str) -> Path:
    """The files of a model whose layers were quantised to 4 bits by another tool."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if "_proj.weight" not in name:
            tensors[name] = tensor.clone()
            continue
        rows, columns = tensor.shape
        layer = name.removesuffix("weight")
        tensors[f"{layer}qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
        tensors[f"{layer}qzeros"] = torch.zeros(columns // 32, rows // 8, dtype=torch.int32)
        tensors[f"{layer}scales"] = torch.ones(columns // 32, rows, dtype=torch.float16)
        tensors[f"{layer}g_idx"] = torch.zeros(columns, dtype=torch.int32)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config |= {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 32}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_quantization_of_files_is_recognised_counted_and_refused_by_name(
    tmp_path: Path, path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_gptq(tmp_path / method, path, method)
    facts, full = inspect(folder), inspect(path)
    assert facts.quantization == method
    assert facts.parameters == full.parameters
    assert facts.linear_parameters == 0
    size = sum(each.stat().st_size for each in folder.glob("*.safetensors"))
    for dtype in (None, "float32", "float16"):  # their own, whatever the rest is computed in
        counted = estimate(manifest_of(facts), LoadConfig("cuda", dtype=dtype)).weights
        assert counted == facts.weight_bytes
        assert size - 20_000 < counted < size
    monkeypatch.setattr(quantization, "_installed", lambda _package: False)
    said = said_of(lambda: load_model(spec(folder)))
    assert f"quantised by {method}" in said
    assert "gptqmodel" in said


def test_quantization_of_files_by_an_unknown_method_is_refused(tmp_path: Path, path: Path) -> None:
    folder = make_gptq(tmp_path / "odd", path, "vptq")
    assert "quantised by vptq" in said_of(lambda: load_model(spec(folder)))


def test_quantization_of_quantised_files_is_refused(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_gptq(tmp_path / "twice", path, "gptq")
    monkeypatch.setattr(quantization, "_installed", lambda _package: True)
    said = said_of(lambda: load_model(spec(folder, quantization="int8")))
    assert "come quantised by gptq" in said
