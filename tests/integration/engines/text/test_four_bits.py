"""Repositories that AWQ and GPTQ have quantised to 4 bits, read without their packages."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bitinglip.scheduling.placement.estimate import LoadConfig, estimate
from model_store.inspection import inspect
from model_store.manifest import Manifest
from tests.support.models.packed import make_packed
from tests.support.models.text import make_tiny_model, small_llama, write_model
from tests.support.text_harness import generated, job, load, run
from workers.engines import quantization
from workers.engines.base import Refused
from workers.engines.four_bit_linear import FourBitLinear
from workers.engines.text.fused import can_fuse
from workers.engines.text.loading import load as load_model
from workers.protocol import Load

TOKENS = 16


@pytest.fixture(autouse=True)
def _without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_installed", lambda _package: False)


def library_of(source: Path, meant: dict[str, Tensor]) -> Any:
    """Return the library's own class in full precision, with the weights that are packed."""
    library = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    library.load_state_dict(meant, strict=False)
    return library.eval()


@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("llama", "awq", {}),
        ("llama", "gptq", {"act_order": True}),
        ("llama", "gptq", {"settings": {"checkpoint_format": "gptq_v2"}}),
        ("qwen2", "gptq", {}),
        ("qwen3", "awq", {"group": 48}),
    ],
)
def test_four_bits_compute_what_their_formula_generates(
    tmp_path: Path, family: str, method: str, options: dict[str, Any]
) -> None:
    source = make_tiny_model(family, tmp_path / "full")
    meant = make_packed(source, tmp_path / "packed", method, **options)
    engine, ready = load(tmp_path / "packed")
    prompt = engine._loaded.tokenizer("one two").input_ids
    answers = run(engine, job("a", max_tokens=TOKENS), job("b", "three", max_tokens=TOKENS))
    engine.close()
    assert ready.quantization == method
    assert answers["a"].choices[0].text == engine._loaded.tokenizer.decode(
        generated(library_of(source, meant), prompt, TOKENS), skip_special_tokens=True
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("four") / "full")


def spec(path: Path, **settings: Any) -> Load:
    return Load(model="tiny", engine="text", path=str(path), dtype="float32", **settings)


def test_four_bits_are_joined_and_told_as_they_are_loaded(source: Path, tmp_path: Path) -> None:
    make_packed(source, tmp_path / "packed", "awq")
    told: list[int] = []
    loaded = load_model(spec(tmp_path / "packed"), told.append)
    assert can_fuse(loaded.model)
    found = [each for each in loaded.model.modules() if isinstance(each, FourBitLinear)]
    assert len(found) == 7 * len(loaded.model.model.layers)
    packed = sum(each.stored.nbytes for each in found)
    assert packed < sum(told) <= 2 * packed  # with scales and zeros; the rest is not placed yet


def test_four_bits_of_parts_with_other_orders_are_computed_apart(
    source: Path, tmp_path: Path
) -> None:
    """Each part of a joined projection would read its inputs in the first one's order."""
    meant = make_packed(source, tmp_path / "packed", "gptq", act_order=True)
    loaded = load_model(spec(tmp_path / "packed"))
    assert not can_fuse(loaded.model)
    layer = loaded.model.model.layers[1].mlp.up_proj
    expected = meant["model.layers.1.mlp.up_proj.weight"]
    inverse = torch.argsort(layer.order)
    torch.testing.assert_close(
        layer.widened(0, len(expected), torch.float32)[:, inverse], expected, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("gptq", {"bits": 8}, "gptqmodel and optimum"),
        ("gptq", {"checkpoint_format": "marlin"}, "gptqmodel and optimum"),
        ("awq", {"version": "gemv"}, "gptqmodel"),
        ("awq", {"zero_point": False}, "gptqmodel"),
    ],
)
def test_four_bits_packed_otherwise_need_a_package(
    source: Path, tmp_path: Path, method: str, settings: dict[str, Any], said: str
) -> None:
    make_packed(source, tmp_path / "packed", method, settings=settings)
    with pytest.raises(Refused, match=f"quantised by {method}.*{said}.*not installed") as refused:
        load_model(spec(tmp_path / "packed"))
    assert refused.value.code == "MODEL_LOAD_FAILED"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a Llama of which some layers, not all, have outputs enough for the CPU's product."""
    config = small_llama()
    return write_model(config, tmp_path_factory.mktemp("four") / "wide", seed=5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("method", "act_order"), [("awq", False), ("gptq", False), ("gptq", True)])
def test_four_bits_are_counted_as_they_lie_in_memory(
    wide: Path, tmp_path: Path, method: str, act_order: bool, dtype: str
) -> None:
    """Scales and zeros take more there than in the files, and on a CPU most of all."""
    make_packed(wide, tmp_path / "packed", method, group=32, act_order=act_order)
    order = Load(model="m", engine="text", path=str(tmp_path / "packed"), dtype=dtype)
    model = load_model(order).model
    layers = [each for each in model.modules() if isinstance(each, FourBitLinear)]
    assert {each.packed for each in layers} == ({True, False} if dtype == "bfloat16" else {False})
    held = sum(tensor.nbytes for layer in layers for tensor in layer.buffers())
    rest = sum(tensor.nbytes for tensor in model.parameters())
    created = datetime(2026, 1, 1, tzinfo=UTC)
    facts = vars(inspect(tmp_path / "packed"))
    manifest = Manifest(name="m", source="test", created_at=created, **facts)
    if dtype == "float32":  # on a card layers are not packed, in any format
        assert estimate(manifest, LoadConfig("cuda", dtype=dtype)).weights == held + rest
    counted = estimate(manifest, LoadConfig("cpu", dtype=dtype)).weights
    laid_out = 1.25 * rest  # of embeddings and head, beside the files, which stay mapped
    assert counted == held + int(laid_out) + manifest.weight_bytes


PART = "model.layers.0.mlp.up_proj"


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return change


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop(f"{PART}.qzeros"), "lack .*up_proj.qzeros"),
        (drop(f"{PART}.scales"), "lack .*up_proj.scales"),
        (put(f"{PART}.scales", torch.ones(3, 7)), "scales of .*up_proj do not fit"),
        (put(f"{PART}.qweight", torch.ones(2, 2, dtype=torch.int32)), "qweight of .*do not fit"),
        (put(f"{PART}.g_idx", torch.zeros(47, dtype=torch.int32)), "g_idx of .*do not fit"),
        (put(f"{PART}.g_idx", torch.zeros(48, dtype=torch.int32)), "not of one size"),
        (put(f"{PART}.g_idx", -torch.ones(48, dtype=torch.int32)), "not those of their scales"),
        (put(f"{PART}.g_idx", torch.full((48,), 2**31 - 1, dtype=torch.int32)), "not those of"),
        (put(f"{PART}.bias", torch.ones(96)), "no place for the bias"),
        (put("model.extra.qweight", torch.ones(2, 2, dtype=torch.int32)), "no linear layer for"),
        (put("model.layers.0.mlp.act.scales", torch.ones(96)), "act are of no packed weights"),
    ],
)
def test_four_bits_that_do_not_fit_their_model_are_refused(
    source: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    make_packed(source, tmp_path / "packed", "gptq", change=change)
    with pytest.raises(Refused, match=said) as refused:
        load_model(spec(tmp_path / "packed"))
    assert refused.value.code == "MODEL_LOAD_FAILED"


def test_four_bits_take_no_adapter_into_their_weights(source: Path, tmp_path: Path) -> None:
    make_packed(source, tmp_path / "packed", "awq")
    with pytest.raises(Refused, match="merged into weights of full precision only"):
        load_model(spec(tmp_path / "packed", adapter=str(tmp_path)))
