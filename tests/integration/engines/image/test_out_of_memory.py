"""Images when memory runs out: at load, in a step, in a decoder that was cast for its call."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from tests.support.cuda_errors import TWO_OUT_OF_MEMORY_ERRORS
from tests.support.engine_runs import finals
from tests.support.image_harness import ImageHarness, open_image_harness
from tests.support.models.pipelines import make
from workers.engines.base import Refused
from workers.engines.batch_limit import CAUTIOUS_PASSES
from workers.engines.image.engine import ImageEngine
from workers.engines.image.loading import _stored_dtype
from workers.engines.torch_env import choose_dtype
from workers.protocol import ImageDone, ImageJob, Load

#: what diffusers' schedulers do with numpy, and what it says of a method of its own
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array:DeprecationWarning", "ignore:.*upcast_vae:FutureWarning"
)

shapes = pytest.mark.parametrize(
    "error", TWO_OUT_OF_MEMORY_ERRORS.values(), ids=list(TWO_OUT_OF_MEMORY_ERRORS)
)
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def fail_when(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    error: Exception,
    when: Callable[..., bool] = lambda *_: True,
) -> None:
    """Let a method raise the error where its arguments are as said."""
    usual = getattr(owner, name)

    def call(*values: Any, **named: Any) -> Any:
        if when(*values):
            raise error
        return usual(*values, **named)

    monkeypatch.setattr(owner, name, call)


def open_half_harness(folder: Path) -> ImageHarness:
    """Return a tiny SDXL in float16, whose decoder is cast to float32 for each call."""
    harness = open_image_harness("sdxl", folder, dtype="float16")
    assert harness.engine._pipelines.base.vae.dtype is torch.float16
    return harness


@pytest.fixture
def half_harness(tmp_path: Path) -> Iterator[ImageHarness]:
    harness = open_half_harness(tmp_path)
    yield harness
    harness.engine.close()


@shapes
@pytest.mark.parametrize(
    "where",
    [
        "diffusers.UNet2DConditionModel.from_pretrained",
        "transformers.CLIPTextModel.from_pretrained",
        "diffusers.DiffusionPipeline.from_pretrained",
        "diffusers.StableDiffusionPipeline.to",
    ],
)
def test_out_of_memory_at_load_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    repository = make("sd", tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises(Refused) as refused:
        ImageEngine().load(Load(model="m", engine="image", path=str(repository)), lambda _: None)
    assert refused.value.code == "OUT_OF_MEMORY"


@shapes
def test_out_of_memory_in_a_step_computes_fewer_images_together(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job = own_harness.job(seeds=(1, 2, 3))
    expected = [own_harness.expected(job, seed) for seed in job.seeds]
    unet = own_harness.engine._pipelines.base.unet
    fail_when(monkeypatch, unet, "forward", error, lambda latents, *_: len(latents) > 2)
    [drawn] = finals(own_harness.run(job)).values()
    assert isinstance(drawn, ImageDone)
    assert drawn.memory_fallbacks == ("batch_of_1",)
    for index, each in enumerate(expected):
        assert np.array_equal(own_harness.pixels(job, index), each)


@shapes
def test_out_of_memory_in_a_preview_leaves_the_image(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job = own_harness.job(preview_every=1)
    expected = own_harness.expected(job)
    fail_when(monkeypatch, own_harness.engine._pipelines.base.vae, "decode", error, _once())
    own_harness.run(job)
    assert np.array_equal(own_harness.pixels(job), expected)


def test_out_of_memory_limits_the_batch_for_a_while_only(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        unet = own_harness.engine._pipelines.base.unet
        fail_when(patch, unet, "forward", NO_MEMORY, lambda latents, *_: len(latents) > 4)
        own_harness.run(own_harness.job(seeds=(1, 2, 3, 4), steps=1))
    runs = []
    for _ in range(CAUTIOUS_PASSES // 2 + 1):
        own_harness.submit(own_harness.job(seeds=(1, 2, 3, 4), steps=1))
        own_harness.engine.step()
        runs.append(own_harness.engine.books()["calls"])
        own_harness.run()
    # Each job counts as two passes, as the one that ran out of memory did in the end.
    assert runs == [2] * (CAUTIOUS_PASSES // 2 - 1) + [1, 1]


@pytest.mark.parametrize("side", [64, 128])
def test_out_of_memory_in_the_decoder_makes_tiles_smaller_than_the_image(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    """Decode an image of the size that the decoder is made for, 64 here, among others."""
    vae = own_harness.engine._pipelines.base.vae
    assert vae.config.sample_size == 64
    fail_when(monkeypatch, vae.decoder, "forward", NO_MEMORY, lambda z, *_: z.shape[-1] > 4)
    [drawn] = finals(own_harness.run(own_harness.job(width=side, height=side))).values()
    assert isinstance(drawn, ImageDone)
    assert drawn.memory_fallbacks == ("vae_tiling",)


def test_out_of_memory_fallbacks_are_told_while_they_last_and_then_reverted(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = own_harness.job(steps=1)
    expected = own_harness.expected(job)
    vae = own_harness.engine._pipelines.base.vae
    with monkeypatch.context() as patch:
        fail_when(patch, vae.decoder, "forward", NO_MEMORY, lambda z, *_: z.shape[-1] > 4)
        own_harness.run(job)
    told = []
    for _ in range(CAUTIOUS_PASSES):
        again = own_harness.job(steps=1)
        [drawn] = finals(own_harness.run(again)).values()
        assert isinstance(drawn, ImageDone)
        told.append(drawn.memory_fallbacks)
    assert told == [("vae_tiling",)] * (CAUTIOUS_PASSES - 1) + [()]
    assert np.array_equal(own_harness.pixels(again), expected)


# ---- a decoder that is cast for its call ---------------------------------------------------------


def test_out_of_memory_in_a_cast_decoder_is_followed_by_the_same_image(
    half_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = half_harness.engine._pipelines.base.vae
    job = half_harness.job(width=128)
    with monkeypatch.context() as patch:
        fail_when(patch, vae, "decode", NO_MEMORY, lambda *_: not vae.use_tiling)
        [drawn] = finals(half_harness.run(job)).values()
    assert isinstance(drawn, ImageDone)
    assert drawn.memory_fallbacks == ("vae_tiling",)
    assert vae.dtype is torch.float16
    again = half_harness.job(width=128)  # undisturbed, and in tiles as well
    half_harness.run(again)
    assert half_harness.pixels(again).std() > 1
    assert np.array_equal(half_harness.pixels(job), half_harness.pixels(again))


@pytest.mark.parametrize("masked", [False, True])
def test_out_of_memory_in_a_cast_encoder_is_followed_by_the_same_image(
    half_harness: ImageHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    vae = half_harness.engine._pipelines.base.vae
    job = from_picture(half_harness, tmp_path, masked=masked)
    with monkeypatch.context() as patch:
        fail_when(patch, vae, "encode", NO_MEMORY, lambda *_: not vae.use_tiling)
        [drawn] = finals(half_harness.run(job)).values()
    assert isinstance(drawn, ImageDone)
    assert drawn.memory_fallbacks == ("vae_tiling",)
    assert vae.dtype is torch.float16
    again = from_picture(half_harness, tmp_path, masked=masked)
    half_harness.run(again)
    assert np.array_equal(half_harness.pixels(job), half_harness.pixels(again))


def test_error_in_a_cast_decoder_leaves_its_format_for_the_next_job(
    half_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = half_harness.job()
    half_harness.run(good)
    with monkeypatch.context() as patch:
        fail_when(patch, half_harness.engine._pipelines.base.vae, "decode", ValueError("no"))
        half_harness.run(half_harness.job())
    again = half_harness.job()
    half_harness.run(again)
    assert np.array_equal(half_harness.pixels(good), half_harness.pixels(again))


def from_picture(harness: ImageHarness, folder: Path, *, masked: bool) -> ImageJob:
    source, mask = folder / "source.png", folder / "mask.png"
    if not source.exists():  # noise, each time another
        Image.effect_noise((128, 64), 60).convert("RGB").save(source)
        Image.new("L", (128, 64), 255).save(mask)
    paths: dict[str, Any] = {"mask": str(mask)} if masked else {}
    return harness.job(width=128, image=str(source), **paths)


def _once() -> Callable[..., bool]:
    calls = iter([True])
    return lambda *_: next(calls, False)


# ---- which number format -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "capability", "expected"),
    [
        (("float32",), (9, 0), "bfloat16"),
        (("float32",), (7, 5), "float16"),
        (("bfloat16",), (9, 0), "bfloat16"),
        (("bfloat16",), (7, 5), "float16"),
        (("float16",), (9, 0), "float16"),
        (("float32", "float16 variant"), (9, 0), "bfloat16"),  # the float32 ones are loaded
        (("float16 variant",), (9, 0), "float16"),
        (("float16 shards",), (9, 0), "float16"),
    ],
)
def test_dtype_on_a_card_follows_the_files_that_are_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: tuple[str, ...],
    capability: tuple[int, int],
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "a card")
    pipe = DiffusionPipeline.from_pretrained(make("sd", tmp_path / "made"))
    for kind in files:
        name, _, variant = kind.partition(" ")
        pipe.unet.to(getattr(torch, name)).save_pretrained(
            tmp_path / "unet",
            variant="fp16" if variant else None,
            max_shard_size="20KB" if variant == "shards" else "10GB",
        )
    spec = Load(model="m", engine="image", path=str(tmp_path), device="cuda")
    found = choose_dtype("image", spec, torch.device("cuda"), _stored_dtype(tmp_path))
    assert str(found) == f"torch.{expected}"


def test_memory_of_other_sizes_is_looked_at_when_the_size_of_images_changes(
    own_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    monkeypatch.setattr("workers.engines.image.engine.release_unused", looks.append)
    for width in (64, 64, 128, 64):
        own_harness.run(own_harness.job(width=width, steps=1))
    assert len(looks) == 3
