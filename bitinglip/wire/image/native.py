"""The native API's request for images, and how its result looks."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bitinglip.errors import InvalidRequest, UnsupportedParameter
from bitinglip.results.files import PREFIX
from bitinglip.scheduling.job import ImageJob, new_task_id
from bitinglip.scheduling.queue.priority import Priority, RequestPriority
from bitinglip.settings import ImageLimits, ImageModel, Tier
from bitinglip.wire.text.fields import Body, ModelName, Timeout, first
from workers import protocol

SIDE, STEPS = 1024, 50  #: the design's defaults
SIDE_MULTIPLE = 8
MAX_PROMPT = 16_384  #: characters; the model's own limit is told by its tokens
_PREVIEW_EVERY = 5
_SEEDS = 2**63
_RANDOM_SEEDS = 2**32  #: what other tools take, and JavaScript's numbers hold
_MILLION = 1_000_000

Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Format = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTerms:
    """What the server, the model and the caller's key give a request for images."""

    own: ImageModel
    limits: ImageLimits
    tier: Tier
    key_id: str
    timeout: float
    priority: Priority
    folder: Path  #: where uploads are read from, and images written to


class ImageFields(Body):
    """What all surfaces share. ``null`` is the same as leaving a field out."""

    model: ModelName
    prompt: Prompt
    negative_prompt: Prompt | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: Annotated[int, Field(ge=0, lt=_SEEDS)] | None = None
    n: int | None = None
    scheduler: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    def image_job(
        self, terms: ImageTerms, size: tuple[int | None, int | None], uploads: set[str], **more: Any
    ) -> ImageJob:
        """The job, within its bounds; ``uploads`` are to be written where it says they are."""
        own, task_id = terms.own, new_task_id()
        defaults: dict[str, Any] = {
            "timeout": terms.timeout,
            "metadata": own.metadata,
            "adapters": tuple(protocol.Lora(*each) for each in own.default_loras.items()),
        }
        paths = {name: str(terms.folder / f"{task_id}-{name}") for name in uploads}
        job = ImageJob(
            id=task_id,
            model=self.model,
            key_id=terms.key_id,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or None,
            width=first(size[0], own.width, SIDE),
            height=first(size[1], own.height, SIDE),
            steps=first(self.steps, own.steps, STEPS),
            guidance_scale=first(self.guidance_scale, own.guidance_scale, None),
            seeds=_seeds(self.seed, terms.limits.max_images, first(self.n, None, 1)),
            scheduler=self.scheduler or own.scheduler,
            folder=str(terms.folder),
            priority=terms.priority,
            **(defaults | paths | more),
        )
        _check_bounds(job, terms.limits, own, terms.tier)
        return job


class Lora(Body):
    """One of the adapters that the model's settings name."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    scale: Annotated[float, Field(ge=-4, le=4)] = 1.0


class ImageGenerationRequest(ImageFields):
    """Images from a prompt; with ``image`` from that one, with ``mask`` only where it is white."""

    width: int | None = None
    height: int | None = None
    format: Format = "png"
    preview: bool | Annotated[int, Field(ge=0, le=1000)] = False
    metadata: bool | None = None
    loras: Annotated[tuple[Lora, ...], Field(max_length=8)] | None = None
    image: str | None = None
    mask: str | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    output: Literal["b64", "url"] = "b64"
    timeout: Timeout | None = None
    stream: bool = False
    priority: RequestPriority = "normal"
    asynchronous: Annotated[bool, Field(alias="async")] = False

    def to_job(self, terms: ImageTerms) -> ImageJob:
        """The work that this request asks for."""
        if self.image is None and self.mask is not None:
            raise InvalidRequest("'mask' needs 'image'.", param="mask")
        if self.image is None and self.strength is not None:
            raise UnsupportedParameter("'strength' needs 'image'.", param="strength")
        return self.image_job(
            terms,
            (self.width, self.height),
            set(self.uploads()),
            format=self.format,
            metadata=first(self.metadata, None, terms.own.metadata),
            preview_every=_preview_every(self.preview),
            **self._adapters(),
            strength=self.strength,
            output=self.output,
            stream=self.stream,
            timeout=self.timeout or terms.timeout,
        )

    def _adapters(self) -> dict[str, Any]:
        """Those that it names; the model's default ones where it leaves that open."""
        if self.loras is None:
            return {}
        return {"adapters": tuple(protocol.Lora(e.name, e.scale) for e in self.loras)}

    def uploads(self) -> dict[str, str]:
        """The pictures that came with it, in base64, by their field."""
        given = {"image": self.image, "mask": self.mask}
        return {name: text for name, text in given.items() if text is not None}


def _check_bounds(job: ImageJob, limits: ImageLimits, own: ImageModel, tier: Tier) -> None:
    """Raises InvalidRequest for a job beyond what the operator allows."""
    for name in ("width", "height"):
        _within(name, getattr(job, name), limits.min_side, limits.max_side)
        if getattr(job, name) % SIDE_MULTIPLE:
            raise InvalidRequest(f"'{name}' must be a multiple of {SIDE_MULTIPLE}.", param=name)
    _within("steps", job.steps, 1, limits.max_steps)
    if job.guidance_scale is not None:
        _within("guidance_scale", job.guidance_scale, 0, limits.max_guidance)
    each = job.width * job.height / _MILLION
    if own.max_megapixels is not None and each > own.max_megapixels:
        raise InvalidRequest(
            f"This model makes images of at most {own.max_megapixels:g} megapixels.", param="width"
        )
    if tier.image.max_megapixels is not None and job.megapixels > tier.image.max_megapixels:
        raise InvalidRequest(
            f"A request of this key may ask for {tier.image.max_megapixels:g} megapixels in all.",
            param="n" if each <= tier.image.max_megapixels else "width",
        )


def _seeds(first: int | None, most: int, count: int) -> tuple[int, ...]:
    """One for each image, counted up from the first, so that each can be made again alone."""
    _within("n", count, 1, most)
    start = secrets.randbelow(_RANDOM_SEEDS) if first is None else first
    return tuple((start + number) % _SEEDS for number in range(count))


def image_result(job: ImageJob, drawn: protocol.ImageDone) -> dict[str, Any]:
    """``result`` of an InferenceResponse; bytes are filled in by ``results.files``."""
    result: dict[str, Any] = {
        "images": [_image(job, index, each) for index, each in enumerate(drawn.pictures)],
        "steps": drawn.steps,
        "scheduler": drawn.scheduler,
        "guidance_scale": drawn.guidance_scale,
    }
    if drawn.memory_fallbacks:
        result["measures"] = list(drawn.memory_fallbacks)
    return result


def image_usage(job: ImageJob, final: protocol.ImageDone | protocol.Cancelled) -> dict[str, Any]:
    """What is charged: megapixels times steps."""
    made = len(final.pictures) if isinstance(final, protocol.ImageDone) else 0
    return {
        "images": made,
        "megapixels": round(job.megapixels, 6) if made else 0.0,
        "megapixel_steps": round(job.work_done(final), 6),
    }


def _image(job: ImageJob, index: int, picture: protocol.ImageFile) -> dict[str, Any]:
    name = protocol.picture_name(job.id, index, picture.format)
    place = {"url": PREFIX + name} if job.output == "url" else {"b64": None, "file": name}
    facts: dict[str, Any] = {
        "width": picture.width,
        "height": picture.height,
        "seed": picture.seed,
        "format": picture.format,
    }
    if picture.filtered:
        facts["filtered"] = True
    return place | facts


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InvalidRequest(f"'{name}' must be from {least:g} to {most:g}.", param=name)


def _preview_every(asked: bool | int) -> int:
    return (_PREVIEW_EVERY if asked else 0) if isinstance(asked, bool) else asked
