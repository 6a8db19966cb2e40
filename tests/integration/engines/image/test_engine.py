"""The image engine on tiny pipelines of real classes: each image is the one diffusers makes."""

import io
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from tests.support.engine_runs import finals
from tests.support.image_harness import ImageHarness, check_alone, check_together
from workers.engines.base import Refused
from workers.protocol import (
    Cancelled,
    ImageDone,
    Progress,
    Started,
    image_file_name,
)

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


# ---- each image is the one that it gives alone ---------------------------------------------------


def test_image_alone_is_the_library_s_bit_for_bit(harness: ImageHarness) -> None:
    check_alone(harness, tolerance=0)


def test_interleaved_calls_give_the_same_images_bit_for_bit(harness: ImageHarness) -> None:
    jobs = [harness.job("a cat"), harness.job("a dog", width=128), harness.job("a fox", steps=9)]
    harness.run(*jobs)
    for job in jobs:
        assert np.array_equal(harness.pixels(job), harness.expected(job))


def test_cancel_of_a_neighbour_leaves_the_image_the_same_bit_for_bit(harness: ImageHarness) -> None:
    gone, job = harness.job(steps=30), harness.job()
    harness.submit(gone)
    harness.step_until(5, gone)
    harness.submit(job)
    harness.engine.step()
    harness.engine.cancel(gone.id)
    final = finals(harness.run())
    assert isinstance(final[gone.id], Cancelled)
    assert np.array_equal(harness.pixels(job), harness.expected(job))
    assert not (harness.folder / image_file_name(gone.id, 0, "png")).exists()


def test_batch_gives_the_same_images_within_rounding(harness: ImageHarness) -> None:
    check_together(harness, tolerance=1)


def test_seeds_of_one_job_give_their_images(harness: ImageHarness) -> None:
    job = harness.job(seeds=(3, 2**64 - 1, 0))
    [drawn] = finals(harness.run(job)).values()
    assert isinstance(drawn, ImageDone)
    assert [image.seed for image in drawn.images] == [3, 2**64 - 1, 0]
    for index, seed in enumerate(job.seeds):
        assert np.abs(harness.pixels(job, index) - harness.expected(job, seed)).max() <= 1


def test_prompt_cache_gives_the_same_image(harness: ImageHarness) -> None:
    first, second = harness.job("once more"), harness.job("once more")
    harness.run(first)
    harness.run(second)
    assert np.array_equal(harness.pixels(first), harness.pixels(second))


def test_negative_prompts_are_honoured_or_refused(harness: ImageHarness) -> None:
    job = harness.job(negative_prompt="a dog")
    if harness.name == "flux":
        with pytest.raises(Refused) as refused:
            harness.engine.prepare(job)
        assert (refused.value.code, refused.value.param) == (
            "UNSUPPORTED_PARAMETER",
            "negative_prompt",
        )
        return
    harness.run(job)
    assert np.array_equal(harness.pixels(job), harness.expected(job))
    assert not np.array_equal(harness.pixels(job), harness.expected(harness.job()))


def test_edit_from_an_image_and_inside_a_mask_is_the_library_s(
    harness: ImageHarness, tmp_path: Path
) -> None:
    source = Image.effect_noise((64, 64), 60).convert("RGB")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    source.save(tmp_path / "source.png")
    mask.save(tmp_path / "mask.png")
    cases: list[tuple[Any, dict[str, Any]]] = [
        (diffusers.AutoPipelineForImage2Image, {"image": source}),
        (diffusers.AutoPipelineForInpainting, {"image": source, "mask_image": mask}),
    ]
    for pipeline, uploads in cases:
        masked: dict[str, Any] = {"mask": str(tmp_path / "mask.png")} if len(uploads) == 2 else {}
        job = harness.job(image=str(tmp_path / "source.png"), strength=0.7, **masked)
        harness.run(job)
        # A twin: the scheduler of the bare pipeline keeps its state for the other tests.
        pipe = pipeline.from_pipe(harness.bare)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        expected = harness.expected(job, pipe=pipe, strength=0.7, **uploads)
        assert np.array_equal(harness.pixels(job), expected)


@pytest.mark.parametrize("masked", [False, True], ids=["image", "mask"])
@pytest.mark.parametrize(
    ("steps", "strength"), [(1, None), (1, 0.5), (2, 0.3), (6, 0.15), (3, 0.02), (1, 1.0)]
)
def test_edit_makes_at_least_one_step(
    harness: ImageHarness, tmp_path: Path, steps: int, strength: float | None, masked: bool
) -> None:
    source = tmp_path / "source.png"
    Image.effect_noise((64, 64), 60).convert("RGB").save(source)
    more: dict[str, Any] = {"mask": str(source)} if masked else {}
    job = harness.job(image=str(source), steps=steps, strength=strength, **more)
    events = harness.run(job)
    assert isinstance(events[-1], ImageDone), events
    assert [event.steps for event in events if isinstance(event, Progress)] == [1]


def test_steps_fewer_than_the_scheduler_warms_up_with_are_refused(harness: ImageHarness) -> None:
    if harness.name not in ("sd", "sdxl"):
        return
    with pytest.raises(Refused) as refused:
        harness.engine.prepare(harness.job(steps=3, scheduler="pndm"))
    assert (refused.value.code, refused.value.param) == ("INVALID_REQUEST", "steps")
    assert isinstance(harness.run(harness.job(steps=4, scheduler="pndm"))[-1], ImageDone)


def test_edit_of_a_strength_at_which_nothing_happens_is_refused(
    harness: ImageHarness, tmp_path: Path
) -> None:
    source = tmp_path / "source.png"
    Image.effect_noise((64, 64), 60).convert("RGB").save(source)
    with pytest.raises(Refused) as refused:
        harness.engine.prepare(harness.job(image=str(source), strength=1e-30))
    assert (refused.value.code, refused.value.param) == ("INVALID_REQUEST", "strength")


def test_mask_that_is_transparent_is_a_white_one(harness: ImageHarness, tmp_path: Path) -> None:
    source, white, clear = (tmp_path / f"{name}.png" for name in ("source", "white", "clear"))
    Image.effect_noise((64, 64), 60).convert("RGB").save(source)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(white)
    picture = Image.new("RGBA", (64, 64), "red")
    picture.paste((0, 0, 0, 0), (0, 0, 32, 64))
    picture.save(clear)
    jobs = [harness.job(image=str(source), mask=str(each)) for each in (white, clear)]
    harness.run(*jobs)
    assert np.array_equal(harness.pixels(jobs[0]), harness.pixels(jobs[1]))


# ---- steps ---------------------------------------------------------------------------------------


def test_progress_tells_every_step_once(harness: ImageHarness) -> None:
    job = harness.job(steps=30)
    events = harness.run(job)
    assert isinstance(events[0], Started)
    steps = [(each.step, each.steps) for each in events if isinstance(each, Progress)]
    assert steps == [(number, 30) for number in range(1, 31)]
    assert isinstance(events[-1], ImageDone)
    assert events[-1].steps == 30


def test_stream_off_leaves_only_start_and_final_event(harness: ImageHarness) -> None:
    events = harness.run(harness.job(stream=False, preview_every=1))
    assert [type(each) for each in events] == [Started, ImageDone]


def test_previews_come_every_so_many_steps(harness: ImageHarness) -> None:
    events = harness.run(harness.job(steps=10, preview_every=3, width=128))
    shown = {each.step: each.preview for each in events if isinstance(each, Progress)}
    assert [step for step, preview in shown.items() if preview] == [3, 6, 9]
    with Image.open(io.BytesIO(shown[9])) as preview:
        assert (preview.format, preview.width, preview.height) == ("JPEG", 128, 64)


def test_fairness_lets_a_short_job_end_before_a_long_one(harness: ImageHarness) -> None:
    long, short = harness.job(steps=50), harness.job(steps=4)
    harness.submit(long)
    harness.step_until(5, long)
    events = harness.run(short)
    order = [each.id for each in events if isinstance(each, ImageDone)]
    assert order == [short.id, long.id]
    end = events.index(finals(events)[short.id])
    meanwhile = [each for each in events[:end] if isinstance(each, Progress) and each.id == long.id]
    assert len(meanwhile) < 30


# ---- cancel --------------------------------------------------------------------------------------


def test_cancel_ends_within_a_step(harness: ImageHarness) -> None:
    job = harness.job(steps=30)
    harness.submit(job)
    harness.step_until(5, job)
    harness.engine.cancel(job.id)
    harness.engine.cancel(job.id)
    harness.engine.cancel("nobody")
    assert harness.engine.step() == [Cancelled(id=job.id, steps=5)]
    assert not any(harness.engine.books().values())


def test_cancel_of_one_of_a_batch_leaves_the_others(harness: ImageHarness) -> None:
    jobs = [harness.job(f"number {seed}", (seed,)) for seed in range(3)]
    harness.submit(*jobs)
    harness.step_until(2, jobs[0])
    harness.engine.cancel(jobs[1].id)
    final = finals(harness.run())
    assert [type(final[job.id]) for job in jobs] == [ImageDone, Cancelled, ImageDone]
    assert np.abs(harness.pixels(jobs[2]) - harness.expected(jobs[2])).max() <= 1


def test_cancel_of_a_waiting_job_leaves_the_others(harness: ImageHarness) -> None:
    jobs = [harness.job(steps=9, width=64 + 16 * number) for number in range(6)]
    harness.submit(*jobs)
    harness.engine.step()
    harness.engine.cancel(jobs[5].id)
    final = finals(harness.run())
    assert [type(final[job.id]) for job in jobs] == [*[ImageDone] * 5, Cancelled]
