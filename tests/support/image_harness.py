"""Runs an image engine beside the library's own pipeline, so that tests can compare them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from tests.support.engine_runs import finals, run_to_end, step_until, submit
from tests.support.models.pipelines import make
from workers.engines.image.engine import ImageEngine
from workers.protocol import (
    DeviceKind,
    Event,
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
class ImageHarness:
    """Holds an engine, the same pipeline bare, and where images go."""

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
        submit(self.engine, *jobs)

    def run(self, *jobs: ImageJob) -> list[Event]:
        """Run jobs, and those that run already, to their ends."""
        return run_to_end(self.engine, *jobs)

    def step_until(self, step: int, job: ImageJob) -> None:
        """Step the engine until a job has reported a step."""

        def reported(event: Event) -> bool:
            return isinstance(event, Progress) and (event.id, event.step) == (job.id, step)

        events = step_until(self.engine, lambda events: any(map(reported, events)))
        assert any(map(reported, events)), "that step never came"

    def pixels(self, job: ImageJob, index: int = 0) -> Any:
        with Image.open(self.folder / image_file_name(job.id, index, job.format)) as found:
            return np.asarray(found).astype(int)

    def expected(
        self, job: ImageJob, seed: int | None = None, pipe: Any = None, **more: Any
    ) -> Any:
        """Return the library's pictures for the same arguments."""
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


def check_alone(harness: ImageHarness, tolerance: int) -> None:
    """Check that pictures drawn alone differ from the library's by no more than so many levels."""
    jobs = [harness.job(), harness.job("another", (8,), width=128, steps=3, guidance_scale=2.0)]
    for job in jobs:
        [drawn] = finals(harness.run(job)).values()
        assert isinstance(drawn, ImageDone)
        assert (drawn.images[0].seed, drawn.images[0].width) == (job.seeds[0], job.width)
        assert np.abs(harness.pixels(job) - harness.expected(job)).max() <= tolerance


def check_together(harness: ImageHarness, tolerance: int) -> None:
    """So do pictures of several jobs that are drawn in one pass."""
    jobs = [harness.job(f"number {seed}", (seed,)) for seed in range(3)]
    harness.submit(*jobs)
    harness.engine.step()
    assert harness.engine.books()["calls"] == 1
    harness.run()
    for job in jobs:
        assert np.abs(harness.pixels(job) - harness.expected(job)).max() <= tolerance


def open_image_harness(
    name: str,
    folder: Path,
    options: ImageOptions | None = None,
    *,
    device: DeviceKind = "cpu",
    dtype: str | None = None,
    edit: Callable[[Path], None] = lambda _: None,
) -> ImageHarness:
    """Load a pipeline into an engine and beside it; ``edit`` changes its files before."""
    repository = make(name, folder / "repository")
    edit(repository)
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
    return ImageHarness(name, out, engine, bare)
