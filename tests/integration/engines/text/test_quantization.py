"""Text models whose linear layers are quantised at load, and files that come quantised."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    MixtralConfig,
    TorchAoConfig,
)

from bitinglip.scheduling.placement.estimate import LoadConfig, estimate
from model_store.inspection import inspect
from model_store.inspection.quantized import is_usual
from model_store.manifest import Manifest
from tests.support.models.text import make_tiny_model, small_llama, write_model
from tests.support.text_harness import generated, job, load, run
from workers.engines import quantization
from workers.engines.base import Refused
from workers.engines.eight_bit_linear import EightBitLinear
from workers.engines.text import four_bit_files, loading
from workers.engines.text.loading import load as load_model
from workers.engines.text.quantized import EIGHT_BITS, eight_bits
from workers.protocol import Load, Quantization

FORMATS: tuple[Quantization, ...] = ("int8", "fp8", "llm_int8", "nf4")
TOKENS = 16


OURS: tuple[Quantization, ...] = ("int8", "fp8")
PACKAGES = {"int8": "torchao", "fp8": "torchao", "llm_int8": "bitsandbytes", "nf4": "bitsandbytes"}


def package(name: str) -> None:
    """Skip a test without the library of a format; its own warnings at the import are nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(PACKAGES[name])


def setting(name: str) -> Any:
    """Return the library's own settings of a format, as its documentation has them."""
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
    """Provide a Llama whose layers are as wide as a block of every format."""
    config = small_llama(initializer_range=0.3)
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
    assert ready.quantization == name
    expected = generated(library, prompt, TOKENS)
    text = engine._loaded.tokenizer.decode(expected, skip_special_tokens=True)
    assert answers["a"].choices[0].text == text


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2"])
@pytest.mark.parametrize("name", OURS)
def test_quantization_of_ours_computes_what_rounded_weights_generate(
    tmp_path: Path, family: str, name: Quantization
) -> None:
    """The library's own class in full precision, with weights that were rounded to 8 bits."""
    folder = make_tiny_model(family, tmp_path / family)
    engine, _ = load(folder, quantization=name)
    prompt = engine._loaded.tokenizer("one two").input_ids
    answers = run(engine, job("a", max_tokens=TOKENS), job("b", "three", max_tokens=TOKENS))
    engine.close()
    library = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for layer in library.model.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            small, scale = eight_bits(layer.weight.detach(), EIGHT_BITS[name])
            layer.weight.data = small.float() * scale[:, None]
    assert answers["a"].choices[0].text == engine._loaded.tokenizer.decode(
        generated(library, prompt, TOKENS), skip_special_tokens=True
    )


@pytest.mark.parametrize("name", OURS)
@pytest.mark.filterwarnings("ignore")
def test_quantization_of_ours_has_the_numbers_of_torchao(path: Path, name: Quantization) -> None:
    package(name)
    ours = load_model(spec(path, quantization=name)).model
    theirs = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, quantization_config=setting(name)
    )
    for mine, other in zip(ours.model.layers, theirs.model.layers, strict=True):
        for part in ("gate_proj", "up_proj", "down_proj"):
            layer, weight = getattr(mine.mlp, part), getattr(other.mlp, part).weight
            torch.testing.assert_close(layer.scale, weight.scale[:, 0], rtol=1e-6, atol=0)
            apart = (layer.stored.float() - weight.qdata.float()).abs()
            assert (apart > 0).float().mean() < 5e-3  # halves are rounded either way


@pytest.mark.parametrize(("name", "most"), [("int8", 0.1), ("fp8", 0.5), ("nf4", 1.0)])
@pytest.mark.filterwarnings("ignore")
def test_quantization_stays_near_full_precision(
    path: Path, name: Quantization, most: float
) -> None:
    if name not in OURS:
        package(name)
    ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        exact = load_model(spec(path)).model(ids).logits
        near = load_model(spec(path, quantization=name)).model(ids).logits
    assert (near - exact).square().mean().sqrt() < most * exact.std()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("name", OURS)
def test_quantization_is_counted_by_the_headers(
    tmp_path: Path, family: str, name: Quantization
) -> None:
    """The estimate knows what is quantised, and what is left."""
    folder = make_tiny_model(family, tmp_path / family)
    facts = inspect(folder)
    model = load_model(spec(folder, quantization=name)).model
    quantized = [each for each in model.modules() if isinstance(each, EightBitLinear)]
    assert facts.linear_parameters == sum(each.stored.numel() for each in quantized)
    assert facts.linear_rows == sum(each.out_features for each in quantized)
    held = sum(each.stored.nbytes + each.scale.nbytes for each in quantized)
    biases = [each.bias for each in quantized if each.bias is not None]
    held += sum(each.nbytes for each in [*model.parameters(), *biases])
    config = LoadConfig("cuda", quantization=name, dtype="float32")
    assert estimate(manifest_of(facts), config).weights == held


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


def test_quantization_of_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
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
    """Return the files of a model whose layers another tool quantised to 4 bits.

    They are packed as only that tool's own kernels read them.
    """
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
    packing = {"checkpoint_format": "marlin", "version": "marlin"}
    known = {"quant_method": method, "bits": 4, "group_size": 32, **packing}
    config |= {"quantization_config": known}
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


@pytest.mark.parametrize("method", ["awq", "gptq", "vptq", None])
@pytest.mark.parametrize(
    "packing",
    [
        {},
        *({"version": each} for each in ("GEMM", "gemv", "marlin", 7)),
        {"zero_point": False},
        *({"checkpoint_format": each} for each in ("gptq", "gptq_v2", "marlin")),
        {"format": "gptq_v2", "version": "gemm"},
    ],
)
def test_quantization_is_counted_as_ours_where_it_is_read_by_us(
    method: str | None, packing: dict[str, Any]
) -> None:
    ours = four_bit_files.format_of(method, {"bits": 4, **packing}) is not None
    assert is_usual(method, packing) == ours


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


@pytest.mark.parametrize(("kind", "mapped"), [(LlamaConfig, True), (MixtralConfig, False)])
def test_quantized_weights_stay_mapped_unless_experts_are_joined(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, mapped: bool
) -> None:
    """Joined in RAM, they would take as much there as all of the model."""

    class Told(Exception):
        pass

    def choose(_config: Any) -> Any:
        class Library:
            @staticmethod
            def from_pretrained(*_given: Any, device_map: Any, **_options: Any) -> Any:
                raise Told(device_map is None)

        return Library

    monkeypatch.setattr(loading, "auto_class", choose)
    spec = Load(model="m", engine="text", path=str(path))
    card = torch.device("meta")
    with pytest.raises(Told) as told:
        loading._model(path, kind(), torch.float32, card, spec, spread=False, quantization="int8")
    assert told.value.args == (mapped,)
