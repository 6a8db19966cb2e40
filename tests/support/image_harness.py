"""Runs an image engine beside the library's own pipeline, so that tests can compare them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from tests.support.models.pipelines import make
from workers.engines.image.engine import ImageEngine
from workers.protocol import (
    Cancelled,
    DeviceKind,
    Event,
    Failed,
    ImageDone,
    ImageJob,
    ImageOptions,
    Load,
    Progress,
    image_file_name,
)

GUIDANCE = {"flux": 3.5, "z-image": 5.0}
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
        with Image.open(self.folder / image_file_name(job.id, index, job.format)) as found:
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


def check_alone(studio: Studio, tolerance: int) -> None:
    """Pictures that are drawn alone differ from the library's by no more than so many levels."""
    jobs = [studio.job(), studio.job("another", (8,), width=128, steps=3, guidance_scale=2.0)]
    for job in jobs:
        [drawn] = ends(studio.run(job)).values()
        assert isinstance(drawn, ImageDone)
        assert (drawn.images[0].seed, drawn.images[0].width) == (job.seeds[0], job.width)
        assert np.abs(studio.pixels(job) - studio.expected(job)).max() <= tolerance


def check_together(studio: Studio, tolerance: int) -> None:
    """So do pictures of several jobs that are drawn in one pass."""
    jobs = [studio.job(f"number {seed}", (seed,)) for seed in range(3)]
    studio.submit(*jobs)
    studio.engine.step()
    assert studio.engine.books()["calls"] == 1
    studio.finish()
    for job in jobs:
        assert np.abs(studio.pixels(job) - studio.expected(job)).max() <= tolerance


def open_studio(
    name: str,
    folder: Path,
    options: ImageOptions | None = None,
    *,
    device: DeviceKind = "cpu",
    dtype: str | None = None,
) -> Studio:
    repository = make(name, folder / "repository")
    engine = ImageEngine()
    spec = Load(
        model=name,
        engine="image",
        path=str(repository),
        threads=1,
        image=options,
        device=device,
        dtype=dtype,
    )
    engine.load(spec, lambda _part: None)
    bare = diffusers.DiffusionPipeline.from_pretrained(
        repository, dtype=torch.float32, use_safetensors=True
    )
    bare.set_progress_bar_config(disable=True)
    bare.to(device)
    out = folder / "out"
    out.mkdir(parents=True)
    return Studio(name, out, engine, bare)


def ends(events: list[Event]) -> dict[str, Event]:
    finals = [each for each in events if isinstance(each, ImageDone | Failed | Cancelled)]
    assert len({each.id for each in finals}) == len(finals), "exactly one final event each"
    return {each.id: each for each in finals}
