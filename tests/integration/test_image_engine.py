"""The image engine on tiny pipelines of real classes: each image is the one diffusers makes."""

import gc
import io
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_pipelines import PIPELINES, make
from workers.engines.base import Refused
from workers.engines.image.engine import ImageEngine
from workers.protocol import (
    Cancelled,
    Drawn,
    Event,
    Failed,
    ImageJob,
    Load,
    Progress,
    Started,
    picture_name,
)

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

GUIDANCE = {"flux": 3.5}
STEPS = 6


@dataclass
class Studio:
    """An engine, the same pipeline bare, and where images go."""

    name: str
    folder: Path
    engine: ImageEngine
    bare: Any
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))

    def job(self, prompt: str = "a cat", seeds: tuple[int, ...] = (3,), **fields: Any) -> ImageJob:
        fields = {"width": 64, "height": 64, "steps": STEPS, **fields}
        name = fields.pop("id", f"{self.name}{next(self.numbers)}")
        return ImageJob(id=name, prompt=prompt, seeds=seeds, folder=str(self.folder), **fields)

    def submit(self, *jobs: ImageJob) -> None:
        for job in jobs:
            self.engine.submit(self.engine.prepare(job))

    def finish(self) -> list[Event]:
        events: list[Event] = []
        for _ in range(10_000):
            if not self.engine.in_flight:
                assert not any(self.engine.books().values()), "something is still held"
                return events
            events += self.engine.step()
        raise AssertionError("the engine does not come to an end")

    def run(self, *jobs: ImageJob) -> list[Event]:
        self.submit(*jobs)
        return self.finish()

    def step_until(self, step: int, job: ImageJob) -> None:
        for _ in range(1000):
            for event in self.engine.step():
                if isinstance(event, Progress) and (event.id, event.step) == (job.id, step):
                    return
        raise AssertionError("that step never came")

    def pixels(self, job: ImageJob, index: int = 0) -> Any:
        with Image.open(self.folder / picture_name(job.id, index, job.format)) as found:
            return np.asarray(found).astype(int)

    def expected(
        self, job: ImageJob, seed: int | None = None, pipe: Any = None, **more: Any
    ) -> Any:
        """What a plain call of the library makes of the same."""
        asked: dict[str, Any] = {
            "prompt": job.prompt,
            "width": job.width,
            "height": job.height,
            "num_inference_steps": job.steps,
            "guidance_scale": job.guidance_scale or GUIDANCE.get(self.name, 7.5),
            "generator": torch.Generator().manual_seed(job.seeds[0] if seed is None else seed),
            **more,
        }
        if job.negative_prompt:
            asked["negative_prompt"] = job.negative_prompt
        return np.asarray((pipe or self.bare)(**asked).images[0]).astype(int)


@pytest.fixture(scope="module", params=sorted(PIPELINES))
def module_studio(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Studio]:
    name = request.param
    studio = open_studio(name, tmp_path_factory.mktemp(name))
    yield studio
    studio.engine.close()


def open_studio(name: str, folder: Path) -> Studio:
    repository = make(name, folder / "repository")
    engine = ImageEngine()
    spec = Load(model=name, engine="image", path=str(repository), threads=1)
    engine.load(spec, lambda _part: None)
    bare = diffusers.DiffusionPipeline.from_pretrained(
        repository, dtype=torch.float32, use_safetensors=True
    )
    bare.set_progress_bar_config(disable=True)
    out = folder / "out"
    out.mkdir()
    return Studio(name, out, engine, bare)


@pytest.fixture
def studio(module_studio: Studio) -> Iterator[Studio]:
    yield module_studio
    assert module_studio.engine.in_flight == 0


@pytest.fixture
def painter(tmp_path: Path) -> Iterator[Studio]:
    """One of a test's own, to be broken."""
    studio = open_studio("sd", tmp_path)
    yield studio
    studio.engine.close()


def ends(events: list[Event]) -> dict[str, Event]:
    finals = [each for each in events if isinstance(each, Drawn | Failed | Cancelled)]
    assert len({each.id for each in finals}) == len(finals), "exactly one final event each"
    return {each.id: each for each in finals}


# ---- each image is the one that it gives alone ---------------------------------------------------


def test_alone_it_is_the_library_s_image_bit_for_bit(studio: Studio) -> None:
    job = studio.job()
    [drawn] = ends(studio.run(job)).values()
    assert isinstance(drawn, Drawn)
    assert (drawn.pictures[0].seed, drawn.pictures[0].width) == (3, 64)
    assert np.array_equal(studio.pixels(job), studio.expected(job))
    job = studio.job("another", (8,), width=128, steps=3, guidance_scale=2.0)
    studio.run(job)
    assert np.array_equal(studio.pixels(job), studio.expected(job))


def test_between_steps_of_others_it_is_the_same_bit_for_bit(studio: Studio) -> None:
    jobs = [studio.job("a cat"), studio.job("a dog", width=128), studio.job("a fox", steps=9)]
    studio.run(*jobs)
    for job in jobs:
        assert np.array_equal(studio.pixels(job), studio.expected(job))


def test_after_a_cancelled_neighbour_it_is_the_same_bit_for_bit(studio: Studio) -> None:
    gone, job = studio.job(steps=30), studio.job()
    studio.submit(gone)
    studio.step_until(5, gone)
    studio.submit(job)
    studio.engine.step()
    studio.engine.cancel(gone.id)
    final = ends(studio.finish())
    assert isinstance(final[gone.id], Cancelled)
    assert np.array_equal(studio.pixels(job), studio.expected(job))
    assert not (studio.folder / picture_name(gone.id, 0, "png")).exists()


def test_in_one_pass_with_others_it_is_the_same_within_rounding(studio: Studio) -> None:
    jobs = [studio.job(f"number {seed}", (seed,)) for seed in range(3)]
    studio.submit(*jobs)
    studio.engine.step()
    assert studio.engine.books()["runs"] == 1
    studio.finish()
    for job in jobs:
        assert np.abs(studio.pixels(job) - studio.expected(job)).max() <= 1


def test_the_images_of_one_job_are_those_of_their_seeds(studio: Studio) -> None:
    job = studio.job(seeds=(3, 4, 5))
    [drawn] = ends(studio.run(job)).values()
    assert isinstance(drawn, Drawn)
    assert [picture.seed for picture in drawn.pictures] == [3, 4, 5]
    for index, seed in enumerate(job.seeds):
        assert np.abs(studio.pixels(job, index) - studio.expected(job, seed)).max() <= 1


def test_a_prompt_that_is_known_gives_the_same_image(studio: Studio) -> None:
    first, second = studio.job("once more"), studio.job("once more")
    studio.run(first)
    studio.run(second)
    assert np.array_equal(studio.pixels(first), studio.pixels(second))


def test_negative_prompts_are_honoured_or_refused(studio: Studio) -> None:
    job = studio.job(negative_prompt="a dog")
    if studio.name == "flux":
        with pytest.raises(Refused) as refused:
            studio.engine.prepare(job)
        assert (refused.value.code, refused.value.param) == (
            "UNSUPPORTED_PARAMETER",
            "negative_prompt",
        )
        return
    studio.run(job)
    assert np.array_equal(studio.pixels(job), studio.expected(job))
    assert not np.array_equal(studio.pixels(job), studio.expected(studio.job()))


def test_from_an_image_and_inside_a_mask(studio: Studio, tmp_path: Path) -> None:
    source = Image.effect_noise((64, 64), 60).convert("RGB")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    source.save(tmp_path / "source.png")
    mask.save(tmp_path / "mask.png")
    for pipeline, uploads in [
        (diffusers.AutoPipelineForImage2Image, {"image": source}),
        (diffusers.AutoPipelineForInpainting, {"image": source, "mask_image": mask}),
    ]:
        masked = {"mask": str(tmp_path / "mask.png")} if len(uploads) == 2 else {}
        job = studio.job(image=str(tmp_path / "source.png"), strength=0.7, **masked)
        studio.run(job)
        # A twin: the scheduler of the bare pipeline keeps its state for the other tests.
        pipe = pipeline.from_pipe(studio.bare)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        expected = studio.expected(job, pipe=pipe, strength=0.7, **uploads)
        assert np.array_equal(studio.pixels(job), expected)


def test_a_clear_mask_is_a_white_one(studio: Studio, tmp_path: Path) -> None:
    source, white, clear = (tmp_path / f"{name}.png" for name in ("source", "white", "clear"))
    Image.effect_noise((64, 64), 60).convert("RGB").save(source)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(white)
    picture = Image.new("RGBA", (64, 64), "red")
    picture.paste((0, 0, 0, 0), (0, 0, 32, 64))
    picture.save(clear)
    jobs = [studio.job(image=str(source), mask=str(each)) for each in (white, clear)]
    studio.run(*jobs)
    assert np.array_equal(studio.pixels(jobs[0]), studio.pixels(jobs[1]))


# ---- steps ---------------------------------------------------------------------------------------


def test_every_step_is_told_once(studio: Studio) -> None:
    job = studio.job(steps=30)
    events = studio.run(job)
    assert isinstance(events[0], Started)
    steps = [(each.step, each.steps) for each in events if isinstance(each, Progress)]
    assert steps == [(number, 30) for number in range(1, 31)]
    assert isinstance(events[-1], Drawn)
    assert events[-1].steps == 30


def test_nobody_looks_nobody_is_told(studio: Studio) -> None:
    events = studio.run(studio.job(stream=False, preview_every=1))
    assert [type(each) for each in events] == [Started, Drawn]


def test_previews_come_every_so_many_steps(studio: Studio) -> None:
    events = studio.run(studio.job(steps=10, preview_every=3, width=128))
    shown = {each.step: each.preview for each in events if isinstance(each, Progress)}
    assert [step for step, preview in shown.items() if preview] == [3, 6, 9]
    with Image.open(io.BytesIO(shown[9])) as preview:
        assert (preview.format, preview.width, preview.height) == ("JPEG", 128, 64)


def test_a_short_job_is_not_held_up_by_a_long_one(studio: Studio) -> None:
    long, short = studio.job(steps=50), studio.job(steps=4)
    studio.submit(long)
    studio.step_until(5, long)
    events = studio.run(short)
    order = [each.id for each in events if isinstance(each, Drawn)]
    assert order == [short.id, long.id]
    end = events.index(ends(events)[short.id])
    meanwhile = [each for each in events[:end] if isinstance(each, Progress) and each.id == long.id]
    assert len(meanwhile) < 30


# ---- cancel --------------------------------------------------------------------------------------


def test_cancel_ends_within_a_step(studio: Studio) -> None:
    job = studio.job(steps=30)
    studio.submit(job)
    studio.step_until(5, job)
    studio.engine.cancel(job.id)
    studio.engine.cancel(job.id)
    studio.engine.cancel("nobody")
    assert studio.engine.step() == [Cancelled(id=job.id, steps=5)]
    assert not any(studio.engine.books().values())


def test_one_of_a_pass_can_leave(studio: Studio) -> None:
    jobs = [studio.job(f"number {seed}", (seed,)) for seed in range(3)]
    studio.submit(*jobs)
    studio.step_until(2, jobs[0])
    studio.engine.cancel(jobs[1].id)
    final = ends(studio.finish())
    assert [type(final[job.id]) for job in jobs] == [Drawn, Cancelled, Drawn]
    assert np.abs(studio.pixels(jobs[2]) - studio.expected(jobs[2])).max() <= 1


def test_one_that_waits_can_leave(studio: Studio) -> None:
    jobs = [studio.job(steps=9, width=64 + 16 * number) for number in range(6)]
    studio.submit(*jobs)
    studio.engine.step()
    studio.engine.cancel(jobs[5].id)
    final = ends(studio.finish())
    assert [type(final[job.id]) for job in jobs] == [*[Drawn] * 5, Cancelled]


# ---- refusals ------------------------------------------------------------------------------------


def refusal(studio: Studio, **fields: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        studio.engine.prepare(studio.job(**fields))
    return refused.value


def test_a_scheduler_that_there_is_not(studio: Studio) -> None:
    found = refusal(studio, scheduler="magic")
    assert (found.code, found.param) == ("INVALID_REQUEST", "scheduler")
    assert found.details["schedulers"] == studio.engine._pipelines.schedulers.names != []


def test_every_scheduler_that_is_offered_works(studio: Studio) -> None:
    for name in studio.engine._pipelines.schedulers.names:
        job = studio.job(scheduler=name, steps=4)
        [final] = ends(studio.run(job)).values()
        assert isinstance(final, Drawn), (name, final)
        assert final.scheduler == name


def test_a_prompt_that_would_be_cut(studio: Studio) -> None:
    longest = studio.engine._pipelines.longest_prompt
    studio.engine.prepare(studio.job("x" * (longest - 2)))
    found = refusal(studio, prompt="x" * (longest + 1))
    assert (found.code, found.param) == ("CONTEXT_LENGTH_EXCEEDED", "prompt")
    assert found.details["max_context"] == longest < found.details["prompt_tokens"]


def test_a_size_that_would_be_rounded(studio: Studio) -> None:
    multiple = 16 if studio.name == "flux" else 8
    found = refusal(studio, width=64 + multiple // 2)
    assert (found.code, found.param) == ("INVALID_REQUEST", "width")
    assert found.details == {"multiple": multiple}


def saved(path: Path, image: Any, kind: str = "PNG", **more: Any) -> str:
    image.save(path, kind, **more)
    return str(path)


def test_uploads_that_are_no_pictures(studio: Studio, tmp_path: Path) -> None:
    red = Image.new("RGB", (64, 64), "red")
    good = saved(tmp_path / "good", red)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut").write_bytes(Path(good).read_bytes()[:60])
    saved(tmp_path / "gif", red, "GIF")
    saved(
        tmp_path / "moving", red, "WEBP", save_all=True, append_images=[Image.new("RGB", red.size)]
    )
    for name in ("empty", "cut", "gif", "moving", "missing"):
        found = refusal(studio, image=str(tmp_path / name))
        assert (found.code, found.param) == ("INVALID_REQUEST", "image"), name
        assert str(tmp_path) not in found.message
    small = saved(tmp_path / "small", Image.new("L", (32, 32)))
    assert refusal(studio, image=good, mask=small).param == "mask"


# ---- what goes wrong -----------------------------------------------------------------------------


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
    assert isinstance(drawn, Drawn)
    assert drawn.measures == ("batch_of_2", "batch_of_1")
    for index, each in enumerate(expected):
        assert np.array_equal(painter.pixels(job, index), each)


def test_a_large_image_is_decoded_in_tiles(
    painter: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = painter.engine._pipelines.base.vae
    decoder_fails(painter, monkeypatch, lambda _: not vae.use_tiling, NO_MEMORY)
    [drawn] = ends(painter.run(painter.job())).values()
    assert isinstance(drawn, Drawn)
    assert drawn.measures == ("vae_slicing", "vae_tiling")


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
    assert isinstance(drawn, Drawn)
