"""Images in float16: decoders that overflow there decode in float32, and NaN has a name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.engine_runs import finals
from tests.support.image_harness import ImageHarness, open_image_harness
from workers.protocol import Failed, ImageDone, Progress

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

_DECODER = "vae/diffusion_pytorch_model.safetensors"


def scale(repository: Path, file: str, tensor: str, factor: float) -> None:
    """Multiply a tensor of the model's files."""
    tensors = load_file(repository / file)
    tensors[tensor] = (tensors[tensor].double() * factor).float()
    save_file(tensors, repository / file, metadata={"format": "pt"})


def overflow(repository: Path) -> None:
    """Let the decoder compute what float16 cannot hold; what follows normalises it again."""
    scale(repository, _DECODER, "decoder.conv_in.weight", 2e4)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageHarness]:
    folder = tmp_path_factory.mktemp("overflowing")
    harness = open_image_harness("sd", folder, dtype="float16", edit=overflow)
    yield harness
    harness.engine.close()


def decoded_in(harness: ImageHarness, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Note the formats of the latents that the decoder gets from here on."""
    noted: list[torch.dtype] = []
    vae_class = type(harness.engine._pipelines.base.vae)
    decode = vae_class.decode

    def noting(self: Any, latents: torch.Tensor, *values: Any, **named: Any) -> Any:
        noted.append(latents.dtype)
        return decode(self, latents, *values, **named)

    monkeypatch.setattr(vae_class, "decode", noting)
    return noted


def test_decoder_that_overflows_in_float16_decodes_in_float32_and_this_is_remembered(
    overflowing: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = decoded_in(overflowing, monkeypatch)
    job = overflowing.job()
    [drawn] = finals(overflowing.run(job)).values()
    assert isinstance(drawn, ImageDone)
    assert formats == [torch.float16, torch.float32]
    assert np.abs(overflowing.pixels(job) - overflowing.expected(job)).max() <= 16
    assert overflowing.engine._pipelines.base.vae.dtype is torch.float16, "images are encoded so"
    formats.clear()
    overflowing.run(overflowing.job())
    assert formats == [torch.float32]


def test_previews_of_a_decoder_that_overflows_are_images(overflowing: ImageHarness) -> None:
    events = overflowing.run(overflowing.job(preview_every=2))
    assert any(isinstance(event, Progress) and event.preview for event in events)
    [drawn] = finals(events).values()
    assert isinstance(drawn, ImageDone)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_decoder_that_gives_no_numbers_in_float32_either_fails_the_job_saying_so(
    tmp_path: Path, dtype: str
) -> None:
    def break_decoder(repository: Path) -> None:
        scale(repository, _DECODER, "decoder.conv_out.bias", float("nan"))

    harness = open_image_harness("sd", tmp_path, dtype=dtype, edit=break_decoder)
    [failed] = finals(harness.run(harness.job())).values()
    assert isinstance(failed, Failed)
    assert failed.code == "INFERENCE_FAILED"
    assert "decoder, in float32" in failed.message
    harness.engine.close()


def test_denoiser_that_overflows_fails_its_job_at_the_first_step_and_names_its_format(
    tmp_path: Path,
) -> None:
    def break_denoiser(repository: Path) -> None:
        file = "unet/diffusion_pytorch_model.safetensors"
        scale(repository, file, "conv_norm_out.weight", 6e4)
        scale(repository, file, "conv_out.weight", 1e4)

    harness = open_image_harness("sd", tmp_path, dtype="float16", edit=break_denoiser)
    events = harness.run(harness.job(steps=20))
    [failed] = finals(events).values()
    assert isinstance(failed, Failed)
    assert failed.code == "INFERENCE_FAILED"
    assert "denoiser, in float16" in failed.message
    assert not [event for event in events if getattr(event, "step", 0) > 1]
    harness.engine.close()
