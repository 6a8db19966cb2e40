"""Both surfaces make image jobs here, within the limits of server, model and key."""

import secrets
from typing import Annotated, Any, Literal

from pydantic import Field

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import FileOutput, Job, new_task_id
from bitinglip.settings import ImageLimits, ImageModel, Tier
from bitinglip.wire.body import Body, ModelName, coalesce
from bitinglip.wire.job_context import JobContext
from bitinglip.work.image import megapixels
from workers import protocol

SIDE, STEPS = 1024, 50  #: the design's defaults, where nothing tells the model's own
SIDE_MULTIPLE = 8


MAX_PROMPT = 16_384  #: characters; the model's own limit is told by its tokens


_SEEDS = 2**64  #: a negative one is taken modulo this, as torch takes it
_RANDOM_SEEDS = 2**32  #: what other tools take, and JavaScript's numbers hold


_MILLION = 1_000_000


Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]


Format = Literal["png", "jpeg", "webp"]


class ImageFields(Body):
    """Holds the fields of all requests for images; ``null`` means the same as no value."""

    model: ModelName
    prompt: Prompt
    negative_prompt: Prompt | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: Annotated[int, Field(ge=-_SEEDS // 2, lt=_SEEDS)] | None = None
    n: int | None = None
    scheduler: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    def image_job(
        self,
        context: JobContext,
        size: tuple[int | None, int | None],
        uploads: set[str],
        *,
        timeout: float | None = None,
        output: FileOutput = "b64",
        **job_fields: Any,
    ) -> Job:
        """Make the job, within its bounds; ``uploads`` are to be written where it says they are.

        Raises InvalidRequest for one beyond the bounds.
        """
        own, task_id = context.model_settings.image, new_task_id()
        defaults: dict[str, Any] = {
            "metadata": own.metadata,
            "adapters": tuple(protocol.Lora(*each) for each in own.default_loras.items()),
        }
        paths = {name: str(context.uploads / f"{task_id}-{name}") for name in uploads}
        limits = context.limits.images
        side = min(context.image_side or SIDE, limits.max_side)
        work = protocol.ImageJob(
            id=task_id,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or None,
            width=coalesce(size[0], own.width, side),
            height=coalesce(size[1], own.height, side),
            steps=coalesce(self.steps, own.steps, STEPS),
            guidance_scale=coalesce(self.guidance_scale, own.guidance_scale, None),
            seeds=_seeds(self.seed, limits.max_images, coalesce(self.n, None, 1)),
            scheduler=self.scheduler or own.scheduler,
            folder=str(context.folder),
            **(defaults | paths | job_fields),
        )
        _check_bounds(work, limits, own, context.tier)
        return context.job(work, timeout=timeout, output=output, seeded=self.seed is not None)


class Lora(Body):
    """Names a LoRA of the model's settings, and its scale."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    scale: Annotated[float, Field(ge=-4, le=4)] = 1.0


def _check_bounds(
    work: protocol.ImageJob, limits: ImageLimits, own: ImageModel, tier: Tier
) -> None:
    """Raise InvalidRequest for a job beyond the limits of the operator."""
    for name in ("width", "height"):
        side = getattr(work, name)
        _within(name, side, limits.min_side, limits.max_side)
        if side % SIDE_MULTIPLE:
            nearest = side // SIDE_MULTIPLE * SIDE_MULTIPLE
            raise InvalidRequest(
                f"'{name}' must be a multiple of {SIDE_MULTIPLE}. {nearest} is one.", param=name
            )
    _within("steps", work.steps, 1, limits.max_steps)
    if work.guidance_scale is not None:
        _within("guidance_scale", work.guidance_scale, 0, limits.max_guidance)
    each = work.width * work.height / _MILLION
    if own.max_megapixels is not None and each > own.max_megapixels:
        raise InvalidRequest(
            f"This model makes images of at most {own.max_megapixels:g} megapixels.", param="width"
        )
    if tier.image.max_megapixels is not None and megapixels(work) > tier.image.max_megapixels:
        raise InvalidRequest(
            f"A request of this key may ask for {tier.image.max_megapixels:g} megapixels in all.",
            param="n" if each <= tier.image.max_megapixels else "width",
        )


def _seeds(first: int | None, most: int, count: int) -> tuple[int, ...]:
    """Count seeds up from the first, so that each image can be made again alone."""
    _within("n", count, 1, most)
    start = secrets.randbelow(_RANDOM_SEEDS) if first is None else first
    return tuple((start + number) % _SEEDS for number in range(count))


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InvalidRequest(f"'{name}' must be from {least:g} to {most:g}.", param=name)
