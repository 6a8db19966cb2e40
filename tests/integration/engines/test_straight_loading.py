"""Weights that go straight to a device, by the libraries' device map, are those of a plain load.

No card is needed: the map names the CPU, and for the way of the weights a device that keeps none.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BarkModel,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    VitsModel,
    WhisperForConditionalGeneration,
)

from tests.support.models import bark, voices, whisper
from tests.support.models.text import make_tiny_model
from workers.engines.torch_env import straight_to

MAKERS: dict[str, tuple[Any, Callable[[Path], Path]]] = {
    "text": (AutoModelForCausalLM, lambda path: make_tiny_model("gpt2", path)),
    "bark": (BarkModel, bark.make),
    "whisper": (WhisperForConditionalGeneration, whisper.make),
    "vits": (VitsModel, voices.make_vits),
    "speecht5": (SpeechT5ForTextToSpeech, voices.make_speecht5),
    "vocoder": (SpeechT5HifiGan, voices.make_vocoder),
}
META = torch.device("meta")


def load(model_class: Any, path: Path, dtype: torch.dtype, device_map: Any) -> Any:
    return model_class.from_pretrained(
        path, dtype=dtype, device_map=device_map, use_safetensors=True, local_files_only=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", MAKERS)
def test_straight_load_gives_the_same_weights(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    model_class, make = MAKERS[kind]
    path = make(tmp_path / "model")
    plain = load(model_class, path, dtype, None)
    straight = load(model_class, path, dtype, {"": torch.device("cpu")})
    expected = plain.state_dict()
    assert straight.state_dict().keys() == expected.keys()
    for name, tensor in straight.state_dict().items():
        assert tensor.dtype is expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
    buffers = dict(plain.named_buffers())
    for name, buffer in straight.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert not any(hasattr(module, "_hf_hook") for module in straight.modules())


@pytest.mark.parametrize("kind", MAKERS)
def test_straight_load_leaves_no_weight_in_ram(tmp_path: Path, kind: str) -> None:
    model_class, make = MAKERS[kind]
    model = load(model_class, make(tmp_path / "model"), torch.float16, straight_to(META))
    assert {parameter.device for parameter in model.parameters()} == {META}
    assert straight_to(torch.device("cpu")) is None
