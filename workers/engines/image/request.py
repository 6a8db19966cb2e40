"""Keeps a job in the engine: its images, the steps that they have made, its events."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from workers.codes import Code
from workers.protocol import (
    Cancelled,
    Failed,
    ImageDone,
    ImageFile,
    ImageJob,
    Progress,
    Started,
)


@dataclass(slots=True, frozen=True)
class Sources:
    """Holds the uploaded images, decoded and of the job's size (PIL)."""

    image: Any
    mask: Any = None


@dataclass(slots=True, eq=False)
class ImageSample:
    """Holds one image that a job asks for."""

    request: "Request"
    index: int
    seed: int
    step: int = 0
    image: ImageFile | None = None  #: None until it is written

    @property
    def wanted(self) -> bool:
        return not self.request.ended


@dataclass(slots=True, eq=False)
class Request:
    """Holds the state of a job between its submission and its final event."""

    job: ImageJob
    sources: Sources | None = None
    chunks: int = 1  #: in which the longest prompt is encoded; padding would change a shorter one
    samples: list[ImageSample] = field(default_factory=list)
    has_started: bool = False
    ended: bool = False
    reported: int = 0  #: the last step that was reported to the client
    steps: int = 0  #: all steps of an image, as the scheduler counts them
    memory_fallbacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.samples = [ImageSample(self, i, seed) for i, seed in enumerate(self.job.seeds)]

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Return the key that all samples of one call share.

        Samples that are made from uploaded images share a call with their own request only.
        """
        job = self.job
        return (
            job.width,
            job.height,
            job.steps,
            job.guidance_scale,
            job.scheduler,
            job.negative_prompt is None,
            self.chunks,
            job.adapters,
            id(self) if self.sources else None,
        )

    def start(self) -> list[Started]:
        """Note that work on the job begins; returns an event the first time."""
        if self.has_started:
            return []
        self.has_started = True
        return [Started(id=self.job.id)]

    def progress(self, steps: int, preview: bytes) -> list[Progress]:
        """Return the progress of the slowest image, if it is new and the client streams."""
        self.steps = steps
        step = min(sample.step for sample in self.samples)
        if step <= self.reported or not self.job.stream:
            return []
        self.reported = step
        return [Progress(id=self.job.id, step=step, steps=steps, preview=preview)]

    def note_memory_fallbacks(self, names: Iterable[str]) -> None:
        """Note what is done to save memory while the job runs; each is reported once."""
        self.memory_fallbacks = tuple(dict.fromkeys((*self.memory_fallbacks, *names)))

    @property
    def is_complete(self) -> bool:
        return all(sample.image for sample in self.samples)

    def done(self, scheduler: str, guidance_scale: float | None) -> ImageDone:
        self.ended = True
        return ImageDone(
            id=self.job.id,
            images=tuple(sample.image for sample in self.samples if sample.image),
            steps=self.steps,
            scheduler=scheduler,
            guidance_scale=guidance_scale,
            memory_fallbacks=self.memory_fallbacks,
        )

    def failed(self, code: Code, message: str, param: str | None = None) -> Failed:
        self.ended = True
        return Failed(id=self.job.id, code=code, message=message, param=param)

    def cancelled(self) -> Cancelled:
        self.ended = True
        return Cancelled(id=self.job.id, steps=max(sample.step for sample in self.samples))
