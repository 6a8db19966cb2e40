"""Images when memory, the pipeline or the disk gives out."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.support.engine_runs import finals
from tests.support.image_harness import ImageHarness
from workers.protocol import (
    Failed,
    ImageDone,
)

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def decoder_fails(
    harness: ImageHarness,
    monkeypatch: pytest.MonkeyPatch,
    when: Callable[[Any], bool],
    error: Exception,
) -> None:
    """Let some decodes fail on the device."""
    decode = harness.bare.vae.__class__.decode

    def decode_or_fail(self: Any, latents: Any, *values: Any, **named: Any) -> Any:
        if when(latents):
            raise error
        return decode(self, latents, *values, **named)

    monkeypatch.setattr(harness.bare.vae.__class__, "decode", decode_or_fail)


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_halves_the_batch_until_it_fits(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = own_harness.job(seeds=(1, 2, 3, 4))
    expected = [own_harness.expected(job, seed) for seed in job.seeds]
    unet = own_harness.engine._pipelines.base.unet
    forward = unet.forward

    def forward_or_fail(latents: Any, *values: Any, **named: Any) -> Any:
        if len(latents) > 2:  # with and without the prompt
            raise NO_MEMORY
        return forward(latents, *values, **named)

    monkeypatch.setattr(unet, "forward", forward_or_fail)
    [drawn] = finals(own_harness.run(job)).values()
    assert isinstance(drawn, ImageDone)
    assert drawn.memory_fallbacks == ("batch_of_2", "batch_of_1")
    for index, each in enumerate(expected):
        assert np.array_equal(own_harness.pixels(job, index), each)


def test_out_of_memory_in_the_decoder_turns_on_tiling(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = own_harness.engine._pipelines.base.vae
    decoder_fails(own_harness, monkeypatch, lambda _: not vae.use_tiling, NO_MEMORY)
    unet = own_harness.engine._pipelines.base.unet
    forward, calls = unet.forward, 0

    def counted(*values: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(*values, **named)

    monkeypatch.setattr(unet, "forward", counted)
    [drawn] = finals(own_harness.run(own_harness.job(seeds=(1, 2), steps=4))).values()
    assert isinstance(drawn, ImageDone)
    assert drawn.memory_fallbacks == ("vae_tiling",)
    assert calls == 4, "what was drawn is decoded again, and not drawn again"


def test_out_of_memory_at_every_fallback_ends_the_job_and_the_next_is_right(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, next_job = own_harness.job(), own_harness.job("the next")
    expected = own_harness.expected(next_job)
    with monkeypatch.context() as patch:
        decoder_fails(own_harness, patch, lambda _: True, NO_MEMORY)
        [failed] = finals(own_harness.run(job)).values()
    assert isinstance(failed, Failed)
    assert failed.code == "OUT_OF_MEMORY"
    own_harness.run(next_job)
    assert np.abs(own_harness.pixels(next_job) - expected).max() <= 1  # attention is in slices now


def test_error_of_a_call_leaves_nothing_of_it_held(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []

    def too_much(latents: Any) -> bool:
        held.append(weakref.ref(latents))
        return True

    decoder_fails(own_harness, monkeypatch, too_much, torch.OutOfMemoryError("CUDA out of memory"))
    own_harness.run(own_harness.job())
    gc.collect()
    assert held
    assert not any(each() is not None for each in held[:-1])


def test_error_of_the_pipeline_fails_its_jobs_only(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = own_harness.job(width=128), own_harness.job()
    expected = own_harness.expected(good)
    decoder_fails(own_harness, monkeypatch, lambda z: z.shape[-1] == 16, ValueError("no"))
    final = finals(own_harness.run(bad, good))
    assert isinstance(final[bad.id], Failed)
    assert final[bad.id].code == "INFERENCE_FAILED"  # type: ignore[union-attr]
    assert np.array_equal(own_harness.pixels(good), expected)


def test_nan_in_an_image_fails_its_job(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = own_harness.job()
    expected = own_harness.expected(job)
    unet = own_harness.engine._pipelines.base.unet
    with monkeypatch.context() as patch:
        patch.setattr(unet.conv_out.bias, "data", torch.full((4,), float("nan")))
        [failed] = finals(own_harness.run(own_harness.job())).values()
    assert isinstance(failed, Failed)
    assert failed.code == "INFERENCE_FAILED"
    own_harness.run(job)
    assert np.array_equal(own_harness.pixels(job), expected)


def test_disk_that_takes_nothing_fails_the_job_by_name(own_harness: ImageHarness) -> None:
    own_harness.submit(msgspec.structs.replace(own_harness.job(), folder="/nowhere"))
    [failed] = finals(own_harness.run()).values()
    assert isinstance(failed, Failed)
    assert failed.code == "DISK_FULL"
    [drawn] = finals(own_harness.run(own_harness.job())).values()
    assert isinstance(drawn, ImageDone)
