"""A model whose output is no number in float16 is refused at load, with the fault that says so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.models import bark, whisper
from tests.support.models.text import make_tiny_model
from tests.support.models.weights import scale
from workers.engines.base import Refused
from workers.engines.registry import make_engine
from workers.protocol import Load

#: by engine: what makes a tiny model, and a tensor by which activations overflow in float16
MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text": (lambda path: make_tiny_model("llama", path), "model.norm.weight"),
    "speech": (bark.make, "coarse_acoustics.layernorm_final.weight"),
    "transcription": (whisper.make, "model.encoder.layer_norm.weight"),
}


@pytest.mark.parametrize("engine", MODELS)
def test_overflow_in_float16_refuses_the_load_and_float32_does_not(
    tmp_path: Path, engine: str
) -> None:
    make, tensor = MODELS[engine]
    path = make(tmp_path / "model")
    scale(path, tensor, 6e4)
    spec = Load(model="m", engine=engine, path=str(path), threads=1, dtype="float16")
    with pytest.raises(Refused) as refused:
        make_engine(engine).load(spec, lambda _: None)
    assert refused.value.fault == "no numbers"
    assert "float16" in refused.value.message
    wide = Load(model="m", engine=engine, path=str(path), threads=1, dtype="float32")
    loaded = make_engine(engine)
    assert loaded.load(wide, lambda _: None).dtype == "float32"
    loaded.close()


@pytest.mark.parametrize("engine", MODELS)
def test_model_that_does_not_overflow_loads_in_float16(tmp_path: Path, engine: str) -> None:
    path = MODELS[engine][0](tmp_path / "model")
    spec = Load(model="m", engine=engine, path=str(path), threads=1, dtype="float16")
    loaded = make_engine(engine)
    assert loaded.load(spec, lambda _: None).dtype == "float16"
    loaded.close()


def test_text_of_a_model_without_numbers_in_any_format_is_refused_without_that_fault(
    tmp_path: Path,
) -> None:
    path = make_tiny_model("llama", tmp_path / "model")
    scale(path, "model.norm.weight", float("nan"))
    spec = Load(model="m", engine="text", path=str(path), threads=1, dtype="float32")
    with pytest.raises(Refused) as refused:
        make_engine("text").load(spec, lambda _: None)
    assert refused.value.fault is None
    assert "not a number in float32" in refused.value.message
