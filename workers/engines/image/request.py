"""One job on its way through the engine: its drawings, how far they are, what becomes of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from workers.protocol import Cancelled, Drawn, Failed, ImageJob, Picture, Progress, Started


@dataclass(slots=True, frozen=True)
class Sources:
    """The uploaded images, decoded and of the job's size (PIL)."""

    image: Any
    mask: Any = None


@dataclass(slots=True, eq=False)
class Drawing:
    """One image to be made."""

    request: "Request"
    index: int
    seed: int
    step: int = 0
    picture: Picture | None = None

    @property
    def wanted(self) -> bool:
        return not self.request.ended


@dataclass(slots=True, eq=False)
class Request:
    job: ImageJob
    sources: Sources | None = None
    drawings: list[Drawing] = field(default_factory=list)
    begun: bool = False
    ended: bool = False
    reported: int = 0  #: steps that the client was told of
    steps: int = 0  #: as the scheduler counts them
    measures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.drawings = [Drawing(self, i, seed) for i, seed in enumerate(self.job.seeds)]

    @property
    def shape(self) -> tuple[Any, ...]:
        """What drawings of one run must agree in; images made from others run by themselves."""
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
        step = min(drawing.step for drawing in self.drawings)
        if step <= self.reported or not self.job.stream:
            return []
        self.reported = step
        return [Progress(id=self.job.id, step=step, steps=steps, preview=preview)]

    def note_measures(self, names: Iterable[str]) -> None:
        """Note what was done to save memory while it was drawn; each is told once."""
        self.measures = tuple(dict.fromkeys((*self.measures, *names)))

    @property
    def whole(self) -> bool:
        return all(drawing.picture for drawing in self.drawings)

    def drawn(self, scheduler: str, guidance_scale: float | None) -> Drawn:
        self.ended = True
        return Drawn(
            id=self.job.id,
            pictures=tuple(drawing.picture for drawing in self.drawings if drawing.picture),
            steps=self.steps,
            scheduler=scheduler,
            guidance_scale=guidance_scale,
            measures=self.measures,
        )

    def failed(self, code: str, message: str, param: str | None = None) -> Failed:
        self.ended = True
        return Failed(id=self.job.id, code=code, message=message, param=param)

    def cancelled(self) -> Cancelled:
        self.ended = True
        return Cancelled(id=self.job.id, steps=max(drawing.step for drawing in self.drawings))
