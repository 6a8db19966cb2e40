"""The image engine on a CUDA device: the library's pictures there, in each way to save memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.engine_runs import finals
from tests.support.image_harness import (
    ImageHarness,
    check_alone,
    check_together,
    open_image_harness,
)
from tests.support.models.pipelines import PIPELINES
from workers.engines.torch_env import release_cached
from workers.protocol import Failed, ImageDone, ImageOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # what diffusers' schedulers do with numpy, and what it says of a method of its own
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*upcast_vae:FutureWarning"),
]

#: levels of 256: the engine's weights are laid out otherwise, so other kernels add them up
TOLERANCE = 2


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch TF32 off: it would hide what is compared here."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def all_memory() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_float32_images_are_the_library_s(tmp_path: Path, name: str) -> None:
    harness = open_image_harness(name, tmp_path, device="cuda", dtype="float32")
    check_alone(harness, TOLERANCE)
    check_together(harness, TOLERANCE)
    assert harness.engine.device_bytes()
    harness.engine.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])
def test_half_precision_computes_several_images(tmp_path: Path, name: str, dtype: str) -> None:
    harness = open_image_harness(name, tmp_path, device="cuda", dtype=dtype)
    job = harness.job(seeds=(1, 2, 3))
    [drawn] = finals(harness.run(job)).values()
    assert isinstance(drawn, ImageDone)
    assert all(harness.pixels(job, index).std() > 1 for index in range(3))
    harness.engine.close()


@pytest.mark.parametrize("offload", ["model", "group", "group_low_ram"])
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_offload_gives_the_same_image(tmp_path: Path, name: str, offload: str) -> None:
    options = ImageOptions(offload=offload)
    harness = open_image_harness(name, tmp_path, options, device="cuda", dtype="float32")
    check_alone(harness, TOLERANCE)
    harness.engine.close()


@pytest.mark.usefixtures("all_memory")
@pytest.mark.parametrize(("name", "dtype"), [("sd", "float32"), ("sdxl", "float16")])
def test_out_of_memory_ends_in_an_image_or_by_name_and_the_engine_lives_on(
    tmp_path: Path, name: str, dtype: str
) -> None:
    harness = open_image_harness(name, tmp_path, device="cuda", dtype=dtype)
    before = harness.job()
    harness.run(before)
    release_cached("cuda")
    total = torch.cuda.get_device_properties(0).total_memory
    small = torch.cuda.memory_reserved() + (4 << 20)
    torch.cuda.set_per_process_memory_fraction(small / total)
    [final] = finals(
        harness.run(harness.job(width=512, height=512, seeds=(1, 2), steps=2))
    ).values()
    if isinstance(final, Failed):
        assert final.code == "OUT_OF_MEMORY"
    else:
        assert isinstance(final, ImageDone)
        assert final.memory_fallbacks
    torch.cuda.set_per_process_memory_fraction(1.0)
    check_lives_on(harness, before_pixels=harness.pixels(before))
    harness.engine.close()


def check_lives_on(harness: ImageHarness, before_pixels: np.ndarray) -> None:
    """Check that the picture is nearly that of before: the decoder may work in tiles, attention in
    slices."""
    again = harness.job()
    [drawn] = finals(harness.run(again)).values()
    assert isinstance(drawn, ImageDone)
    assert np.abs(harness.pixels(again) - before_pixels).mean() < TOLERANCE
