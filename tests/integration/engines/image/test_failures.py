"""Images when memory, the pipeline or the disk gives out."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.support.image_harness import Studio, ends
from workers.protocol import (
    Failed,
    ImageDone,
)

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def decoder_fails(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool], error: Exception
) -> None:
    """The device does not do some decodes."""
    decode = studio.bare.vae.__class__.decode

    def decode_or_fail(self: Any, latents: Any, *values: Any, **named: Any) -> Any:
        if when(latents):
            raise error
        return decode(self, latents, *values, **named)

    monkeypatch.setattr(studio.bare.vae.__class__, "decode", decode_or_fail)


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def test_what_does_not_fit_together_is_drawn_in_parts(
    painter: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = painter.job(seeds=(1, 2, 3, 4))
    expected = [painter.expected(job, seed) for seed in job.seeds]
    decoder_fails(painter, monkeypatch, lambda latents: latents.shape[0] > 1, NO_MEMORY)
    [drawn] = ends(painter.run(job)).values()
    assert isinstance(drawn, ImageDone)
    assert drawn.memory_fallbacks == ("batch_of_2", "batch_of_1")
    for index, each in enumerate(expected):
        assert np.array_equal(painter.pixels(job, index), each)


def test_a_large_image_is_decoded_in_tiles(
    painter: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = painter.engine._pipelines.base.vae
    decoder_fails(painter, monkeypatch, lambda _: not vae.use_tiling, NO_MEMORY)
    [drawn] = ends(painter.run(painter.job())).values()
    assert isinstance(drawn, ImageDone)
    assert drawn.memory_fallbacks == ("vae_tiling",)


def test_what_never_fits_fails_and_the_next_is_right(
    painter: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, next_job = painter.job(), painter.job("the next")
    expected = painter.expected(next_job)
    with monkeypatch.context() as patch:
        decoder_fails(painter, patch, lambda _: True, NO_MEMORY)
        [failed] = ends(painter.run(job)).values()
    assert isinstance(failed, Failed)
    assert failed.code == "OUT_OF_MEMORY"
    painter.run(next_job)
    assert np.abs(painter.pixels(next_job) - expected).max() <= 1  # attention is in slices now


def test_nothing_of_a_failed_call_is_held(painter: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []

    def too_much(latents: Any) -> bool:
        held.append(weakref.ref(latents))
        return True

    decoder_fails(painter, monkeypatch, too_much, torch.OutOfMemoryError("CUDA out of memory"))
    painter.run(painter.job())
    gc.collect()
    assert held
    assert not any(each() is not None for each in held[:-1])


def test_an_error_of_the_pipeline_fails_its_jobs_only(
    painter: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = painter.job(width=128), painter.job()
    expected = painter.expected(good)
    decoder_fails(painter, monkeypatch, lambda z: z.shape[-1] == 16, ValueError("no"))
    final = ends(painter.run(bad, good))
    assert isinstance(final[bad.id], Failed)
    assert final[bad.id].code == "INFERENCE_FAILED"  # type: ignore[union-attr]
    assert np.array_equal(painter.pixels(good), expected)


def test_an_image_that_is_not_a_number_fails(
    painter: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = painter.job()
    expected = painter.expected(job)
    unet = painter.engine._pipelines.base.unet
    with monkeypatch.context() as patch:
        patch.setattr(unet.conv_out.bias, "data", torch.full((4,), float("nan")))
        [failed] = ends(painter.run(painter.job())).values()
    assert isinstance(failed, Failed)
    assert failed.code == "INFERENCE_FAILED"
    painter.run(job)
    assert np.array_equal(painter.pixels(job), expected)


def test_a_disk_that_takes_nothing(painter: Studio) -> None:
    painter.submit(msgspec.structs.replace(painter.job(), folder="/nowhere"))
    [failed] = ends(painter.finish()).values()
    assert isinstance(failed, Failed)
    assert failed.code == "DISK_FULL"
    [drawn] = ends(painter.run(painter.job())).values()
    assert isinstance(drawn, ImageDone)
