"""OpenAI's surface takes these requests for images.

Our additional fields are ``negative_prompt, steps, guidance_scale, seed, scheduler``, and
``strength`` for edits.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from bitinglip.errors import (
    InvalidRequest,
    UnsupportedParameter,
)
from bitinglip.scheduling.job import Job
from bitinglip.wire.body import AllowedValues
from bitinglip.wire.image.job import Format, ImageFields
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.openai_body import Label, OpenAIRequest

_SIZE = re.compile(r"([0-9]{2,5})x([0-9]{2,5})", re.ASCII)


class _ImagesRequest(ImageFields, OpenAIRequest):
    """Holds the fields that generations and edits share."""

    size: Annotated[str, Field(max_length=16)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    user: Label = None
    safety_identifier: Label = None
    complexity: Annotated[Any, AllowedValues((None,))] = None
    frame_count: Annotated[Any, AllowedValues((None,))] = None
    frame_duration_ms: Annotated[Any, AllowedValues((None,))] = None
    svg: Annotated[Any, AllowedValues((None,))] = None
    background: Annotated[Any, AllowedValues((None, "auto", "opaque"))] = None
    quality: Annotated[Any, AllowedValues((None, "auto", "standard"))] = None

    def to_job(
        self,
        context: JobContext,
        *,
        uploads: set[str],
        size: tuple[int, int] | None = None,
        strength: float | None = None,
    ) -> Job:
        """Make the job; ``size`` is the default of the request's. Raises InvalidRequest."""
        if self.partial_images and not self.stream:
            raise InvalidRequest("'partial_images' needs 'stream'.", param="partial_images")
        if self.stream and (self.n or 1) > 1:
            raise UnsupportedParameter("'n' is not supported with 'stream'.", param="n")
        if self.stream and self.response_format == "url":
            raise UnsupportedParameter(
                "'response_format' is not supported with 'stream'.", param="response_format"
            )
        steps = self.steps or context.model_settings.image.steps or 50
        previews = max(1, steps // (self.partial_images + 1)) if self.partial_images else 0
        try:
            return self.image_job(
                context,
                self._asked_size() or size or (None, None),
                uploads,
                strength=strength,
                format=self.output_format or "png",
                output="url" if self.response_format == "url" else "b64",
                preview_every=previews,
                stream=bool(self.stream),
            )
        except InvalidRequest as error:
            raise _named(error) from None

    def _asked_size(self) -> tuple[int, int] | None:
        if self.size in (None, "auto"):
            return None
        match = _SIZE.fullmatch(self.size or "")
        if match is None:
            raise InvalidRequest("'size' must be like 1024x1024, or auto.", param="size")
        return int(match[1]), int(match[2])


def _named(error: InvalidRequest) -> InvalidRequest:
    """Return a refusal of a side under the name that this surface has for both."""
    if error.param not in ("width", "height"):
        return error
    message = error.message.replace(f"'{error.param}'", f"The {error.param} in 'size'")
    return InvalidRequest(message, param="size")


class ImagesRequest(_ImagesRequest):
    """Holds the body of ``POST /v1/images/generations``."""

    moderation: Annotated[Any, AllowedValues((None, "auto", "low"))] = None  # there is none here
    style: Annotated[Any, AllowedValues((None,))] = None
    output_compression: Annotated[Any, AllowedValues((None, 100))] = None


class ImageEditRequest(_ImagesRequest):
    """Holds the fields of ``POST /v1/images/edits``, without its files."""

    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    input_fidelity: Annotated[Any, AllowedValues((None,))] = None
    output_compression: Annotated[Any, AllowedValues((None, 100))] = None
