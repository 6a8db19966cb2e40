"""Refusals of the image engine: which field is named, and which values are offered."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.engine_runs import finals
from tests.support.image_harness import ImageHarness
from workers.engines.base import Refused
from workers.engines.image import long_prompts
from workers.protocol import (
    ImageDone,
)

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def refusal(harness: ImageHarness, **fields: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        harness.engine.prepare(harness.job(**fields))
    return refused.value


def test_scheduler_that_is_unknown_is_refused(harness: ImageHarness) -> None:
    found = refusal(harness, scheduler="magic")
    assert (found.code, found.param) == ("INVALID_REQUEST", "scheduler")
    assert found.details["schedulers"] == harness.engine._pipelines.schedulers.names != []


def test_scheduler_that_is_offered_works(harness: ImageHarness) -> None:
    for name in harness.engine._pipelines.schedulers.names:
        job = harness.job(scheduler=name, steps=4)
        [final] = finals(harness.run(job)).values()
        assert isinstance(final, ImageDone), (name, final)
        assert final.scheduler == name


def test_prompt_that_would_be_cut_is_refused(harness: ImageHarness) -> None:
    pipelines = harness.engine._pipelines
    longest = pipelines.longest_prompt
    if pipelines.chunks_prompts:
        longest = long_prompts.MOST_CHUNKS * long_prompts.room_of(longest)
    harness.engine.prepare(harness.job("x" * (longest - 2)))
    for param in ("prompt", "negative_prompt") if pipelines.chunks_prompts else ("prompt",):
        found = refusal(harness, **{param: "x" * 2 * longest})
        assert (found.code, found.param) == ("CONTEXT_LENGTH_EXCEEDED", param)
        assert found.details["max_context"] == longest < found.details["prompt_tokens"]


def test_size_that_would_be_rounded_is_refused(harness: ImageHarness) -> None:
    multiple = 16 if harness.name in ("flux", "z-image") else 8
    found = refusal(harness, width=64 + multiple // 2)
    assert (found.code, found.param) == ("INVALID_REQUEST", "width")
    assert found.details == {"multiple": multiple}


def saved(path: Path, image: Any, kind: str = "PNG", **more: Any) -> str:
    image.save(path, kind, **more)
    return str(path)


def test_uploads_that_are_no_images_are_refused(harness: ImageHarness, tmp_path: Path) -> None:
    red = Image.new("RGB", (64, 64), "red")
    good = saved(tmp_path / "good", red)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut").write_bytes(Path(good).read_bytes()[:60])
    saved(tmp_path / "gif", red, "GIF")
    saved(
        tmp_path / "moving", red, "WEBP", save_all=True, append_images=[Image.new("RGB", red.size)]
    )
    for name in ("empty", "cut", "gif", "moving", "missing"):
        found = refusal(harness, image=str(tmp_path / name))
        assert (found.code, found.param) == ("INVALID_REQUEST", "image"), name
        assert str(tmp_path) not in found.message
    small = saved(tmp_path / "small", Image.new("L", (32, 32)))
    assert refusal(harness, image=good, mask=small).param == "mask"


def test_negative_prompt_is_refused_where_guidance_is_an_input_of_the_model(
    own_harness: ImageHarness,
) -> None:
    unet = own_harness.engine._pipelines.base.unet
    unet.register_to_config(time_cond_proj_dim=8)  # then the library makes no second pass
    refused = refusal(own_harness, negative_prompt="a dog")
    assert (refused.code, refused.param) == ("UNSUPPORTED_PARAMETER", "negative_prompt")
