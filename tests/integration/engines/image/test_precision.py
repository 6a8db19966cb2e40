"""Images in float16: decoders that overflow there decode in float32, and NaN has a name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.engine_runs import finals
from tests.support.image_harness import ImageHarness, open_image_harness
from tests.support.models.weights import scale
from workers.engines.base import Refused
from workers.protocol import Failed, ImageDone, Progress

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def overflow(repository: Path) -> None:
    """Let the decoder compute what float16 cannot hold; what follows normalises it again."""
    scale(repository / "vae", "decoder.conv_in.weight", 2e4)


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


def test_decoder_that_overflows_in_float16_decodes_in_float32(
    overflowing: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = decoded_in(overflowing, monkeypatch)
    job = overflowing.job()
    [drawn] = finals(overflowing.run(job)).values()
    assert isinstance(drawn, ImageDone)
    assert formats == [torch.float32], "it was found out at load"
    assert np.abs(overflowing.pixels(job) - overflowing.expected(job)).max() <= 16
    assert overflowing.engine._pipelines.base.vae.dtype is torch.float16, "images are encoded so"


def test_decoder_that_overflows_at_a_request_decodes_it_again_in_float32(
    overflowing: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflowing.engine._decoder.overflows = False
    formats = decoded_in(overflowing, monkeypatch)
    [drawn] = finals(overflowing.run(overflowing.job())).values()
    assert isinstance(drawn, ImageDone)
    assert formats == [torch.float16, torch.float32]
    assert overflowing.engine._decoder.overflows


def test_previews_of_a_decoder_that_overflows_are_images(overflowing: ImageHarness) -> None:
    events = overflowing.run(overflowing.job(preview_every=2))
    assert any(isinstance(event, Progress) and event.preview for event in events)
    [drawn] = finals(events).values()
    assert isinstance(drawn, ImageDone)


@pytest.fixture
def half(tmp_path: Path) -> Iterator[ImageHarness]:
    harness = open_image_harness("sd", tmp_path, dtype="float16")
    yield harness
    harness.engine.close()


def test_decoder_that_gives_no_numbers_in_float32_either_fails_the_job_saying_so(
    half: ImageHarness,
) -> None:
    half.engine._pipelines.base.vae.decoder.conv_out.bias.fill_(torch.nan)
    [failed] = finals(half.run(half.job())).values()
    assert isinstance(failed, Failed)
    assert failed.code == "INFERENCE_FAILED"
    assert "decoder, in float32" in failed.message


def test_denoiser_that_overflows_fails_its_job_at_the_first_step_and_names_its_format(
    half: ImageHarness,
) -> None:
    half.engine._pipelines.base.unet.conv_norm_out.weight.mul_(6e4)
    events = half.run(half.job(steps=20))
    [failed] = finals(events).values()
    assert isinstance(failed, Failed)
    assert failed.code == "INFERENCE_FAILED"
    assert "denoiser, in float16" in failed.message
    assert not [event for event in events if getattr(event, "step", 0) > 1]


def test_load_in_float16_of_a_denoiser_that_overflows_is_refused_with_its_fault(
    tmp_path: Path,
) -> None:
    def break_denoiser(repository: Path) -> None:
        scale(repository / "unet", "conv_norm_out.weight", 6e4)

    with pytest.raises(Refused) as refused:
        open_image_harness("sd", tmp_path, dtype="float16", edit=break_denoiser)
    assert refused.value.fault == "no numbers"
    assert "float16" in refused.value.message
    assert "dtype" in refused.value.message
