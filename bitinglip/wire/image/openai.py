"""OpenAI's requests for images, and how a job looks there.

Beside OpenAI's own fields: ``negative_prompt, steps, guidance_scale, seed, scheduler``, and
``strength`` of edits. ``user`` promises nothing and is not kept.
"""

import re
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from bitinglip.errors import (
    InvalidRequest,
    UnsupportedParameter,
)
from bitinglip.scheduling.job import Job
from bitinglip.wire.body import Only
from bitinglip.wire.image.job import Format, ImageFields
from bitinglip.wire.job_context import JobContext

_SIZE = re.compile(r"([0-9]{2,5})x([0-9]{2,5})", re.ASCII)
_json = msgspec.json.Encoder()


class _ImagesRequest(ImageFields):
    """What generations and edits share."""

    size: Annotated[str, Field(max_length=16)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    background: Annotated[Any, Only((None, "auto", "opaque"))] = None
    quality: Annotated[Any, Only((None, "auto", "standard"))] = None

    def to_job(
        self,
        context: JobContext,
        *,
        uploads: set[str],
        size: tuple[int, int] | None = None,
        strength: float | None = None,
    ) -> Job:
        """The work that this request asks for; ``size`` where it leaves that open."""
        if self.partial_images and not self.stream:
            raise InvalidRequest("'partial_images' needs 'stream'.", param="partial_images")
        if self.stream and (self.n or 1) > 1:
            raise UnsupportedParameter("'n' is not supported with 'stream'.", param="n")
        if self.stream and self.response_format == "url":
            raise UnsupportedParameter(
                "'response_format' is not supported with 'stream'.", param="response_format"
            )
        steps = self.steps or context.model_settings.image.steps or 50
        return self.image_job(
            context,
            self._asked_size() or size or (None, None),
            uploads,
            strength=strength,
            format=self.output_format or "png",
            output="url" if self.response_format == "url" else "b64",
            preview_every=max(1, steps // (self.partial_images + 1)) if self.partial_images else 0,
            stream=bool(self.stream),
        )

    def _asked_size(self) -> tuple[int, int] | None:
        if self.size in (None, "auto"):
            return None
        match = _SIZE.fullmatch(self.size or "")
        if match is None:
            raise InvalidRequest("'size' must be like 1024x1024, or auto.", param="size")
        return int(match[1]), int(match[2])


class ImagesRequest(_ImagesRequest):
    """``POST /v1/images/generations``"""

    moderation: Annotated[Any, Only((None, "auto"))] = None
    style: Annotated[Any, Only((None,))] = None
    output_compression: Annotated[Any, Only((None, 100))] = None


class ImageEditRequest(_ImagesRequest):
    """``POST /v1/images/edits``, the fields beside the files."""

    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    input_fidelity: Annotated[Any, Only((None,))] = None
    output_compression: Annotated[Any, Only((None, 100))] = None
