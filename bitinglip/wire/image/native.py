"""The native API takes this request for images."""

from typing import Annotated, Any, Literal

from pydantic import Field

from bitinglip.errors import InvalidRequest, UnsupportedParameter
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.queue.priority import RequestPriority
from bitinglip.wire.body import Timeout, coalesce
from bitinglip.wire.image.job import Format, ImageFields, Lora
from bitinglip.wire.job_context import JobContext
from workers import protocol

_PREVIEW_EVERY = 5


class ImageGenerationRequest(ImageFields):
    """Asks for images from a prompt; from ``image`` if given, only where ``mask`` is white."""

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

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        if self.image is None and self.mask is not None:
            raise InvalidRequest("'mask' needs 'image'.", param="mask")
        if self.image is None and self.strength is not None:
            raise UnsupportedParameter("'strength' needs 'image'.", param="strength")
        return self.image_job(
            context,
            (self.width, self.height),
            set(self.uploads()),
            format=self.format,
            metadata=coalesce(self.metadata, None, context.model_settings.image.metadata),
            preview_every=_preview_every(self.preview),
            **self._adapters(),
            strength=self.strength,
            output=self.output,
            stream=self.stream,
            timeout=self.timeout,
        )

    def _adapters(self) -> dict[str, Any]:
        """Return the LoRAs that the request names; without any, the model's defaults apply."""
        if self.loras is None:
            return {}
        return {"adapters": tuple(protocol.Lora(e.name, e.scale) for e in self.loras)}

    def uploads(self) -> dict[str, str]:
        """Return the images of the request in base64, by field."""
        given = {"image": self.image, "mask": self.mask}
        return {name: text for name, text in given.items() if text is not None}


def _preview_every(asked: bool | int) -> int:
    return (_PREVIEW_EVERY if asked else 0) if isinstance(asked, bool) else asked
