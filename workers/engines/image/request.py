"""One job on its way through the engine: its drawings, how far they are, what becomes of them."""

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
    """The uploaded images, decoded and of the job's size (PIL)."""

    image: Any
    mask: Any = None


@dataclass(slots=True, eq=False)
class ImageSample:
    """One image to be made."""

    request: "Request"
    index: int
    seed: int
    step: int = 0
    picture: ImageFile | None = None

    @property
    def wanted(self) -> bool:
        return not self.request.ended


@dataclass(slots=True, eq=False)
class Request:
    job: ImageJob
    sources: Sources | None = None
    samples: list[ImageSample] = field(default_factory=list)
    begun: bool = False
    ended: bool = False
    reported: int = 0  #: steps that the client was told of
    steps: int = 0  #: as the scheduler counts them
    memory_fallbacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.samples = [ImageSample(self, i, seed) for i, seed in enumerate(self.job.seeds)]

    @property
    def shape(self) -> tuple[Any, ...]:
        """The key that all samples of one run share; images made from others run by themselves."""
        job = self.job
        return (
            job.width,
            job.height,
            job.steps,
            job.guidance_scale,
            job.scheduler,
            job.negative_prompt is None,
            job.adapters,
            id(self) if self.sources else None,
        )

    def started(self) -> list[Started]:
        """The event that work on it has begun, the first time."""
        if self.begun:
            return []
        self.begun = True
        return [Started(id=self.job.id)]

    def advanced(self, steps: int, preview: bytes) -> list[Progress]:
        """The progress of the slowest of its drawings, if that is news and anybody looks."""
        self.steps = steps
        step = min(sample.step for sample in self.samples)
        if step <= self.reported or not self.job.stream:
            return []
        self.reported = step
        return [Progress(id=self.job.id, step=step, steps=steps, preview=preview)]

    def note_memory_fallbacks(self, names: Iterable[str]) -> None:
        """Note what was done to save memory while it was drawn; each is told once."""
        self.memory_fallbacks = tuple(dict.fromkeys((*self.memory_fallbacks, *names)))

    @property
    def whole(self) -> bool:
        return all(sample.picture for sample in self.samples)

    def drawn(self, scheduler: str, guidance_scale: float | None) -> ImageDone:
        self.ended = True
        return ImageDone(
            id=self.job.id,
            pictures=tuple(sample.picture for sample in self.samples if sample.picture),
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
