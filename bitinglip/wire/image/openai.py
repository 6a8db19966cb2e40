"""OpenAI's requests for images, and how a job looks there.

Beside OpenAI's own fields: ``negative_prompt, steps, guidance_scale, seed, scheduler``, and
``strength`` of edits. ``user`` promises nothing and is not kept.
"""

import re
from base64 import b64encode
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from bitinglip.errors import (
    BitingLipError,
    InvalidRequest,
    TaskCancelled,
    UnsupportedParameter,
)
from bitinglip.results.files import PREFIX, Files, outputs_of
from bitinglip.results.streams import sse
from bitinglip.scheduling.event_log import Event, EventLog, error_of
from bitinglip.scheduling.job import ImageJob
from bitinglip.wire.errors import error_body
from bitinglip.wire.image.native import Format, ImageFields, ImageTerms
from bitinglip.wire.text.fields import Only
from workers import protocol

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

    def job(
        self,
        terms: ImageTerms,
        *,
        uploads: set[str],
        size: tuple[int, int] | None = None,
        strength: float | None = None,
    ) -> ImageJob:
        """The work that this request asks for; ``size`` where it leaves that open."""
        if self.partial_images and not self.stream:
            raise InvalidRequest("'partial_images' needs 'stream'.", param="partial_images")
        if self.stream and (self.n or 1) > 1:
            raise UnsupportedParameter("'n' is not supported with 'stream'.", param="n")
        if self.stream and self.response_format == "url":
            raise UnsupportedParameter(
                "'response_format' is not supported with 'stream'.", param="response_format"
            )
        steps = self.steps or terms.own.steps or 50
        return self.image_job(
            terms,
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


class ImagesView:
    """A job as OpenAI's images look: one object, or partial images and a last one.

    ``kind``: image_generation or image_edit; ``base_url``: where the client reached us.
    """

    begins_at_once = False
    raw_type = None
    media_type = "application/json"

    def __init__(
        self,
        event_log: EventLog,
        request_id: str,
        files: Files,
        *,
        kind: str,
        base_url: str,
        partial: int,
    ) -> None:
        assert isinstance(event_log.job, ImageJob)
        self._event_log = event_log
        self._job = event_log.job
        self._request_id = request_id
        self._files = files
        self._kind = kind
        self._base_url = base_url
        self._partial_left = partial
        self._partial_sent = 0
        self._data: list[dict[str, Any]] = []
        self._trouble: BitingLipError | None = None

    async def settle(self) -> None:
        """Have the images kept, or read."""
        try:
            if self._job.output == "url":
                await self._files.keep(self._event_log)
            for made in outputs_of(self._event_log):
                if self._job.output == "url":
                    self._data.append({"url": f"{self._base_url}{PREFIX}{made.id}"})
                else:
                    self._data.append({"b64_json": await self._files.base64(made.id)})
        except BitingLipError as error:
            self._trouble = error

    def render(self, event: Event) -> bytes:
        match event:
            case protocol.Progress(preview=preview) if preview and self._partial_left:
                return self._partial(preview)
            case protocol.ImageDone() if self._trouble is not None:
                return sse(error_body(self._trouble, self._request_id))
            case protocol.ImageDone():
                return self._event("completed", self._data[0], self._job.format)
            case protocol.Failed():
                return sse(error_body(error_of(event), self._request_id))
            case protocol.Cancelled():
                return sse(error_body(TaskCancelled(), self._request_id))
            case _:
                return b""

    def whole(self) -> bytes:
        if self._trouble is not None:
            raise self._trouble
        return _json.encode(
            {
                "created": int(self._job.created_at.timestamp()),
                "data": self._data,
                "output_format": self._job.format,
                "size": self._size,
            }
        )

    def _partial(self, preview: bytes) -> bytes:
        index = self._partial_sent
        self._partial_left -= 1
        self._partial_sent += 1
        image = {"b64_json": b64encode(preview).decode(), "partial_image_index": index}
        return self._event("partial_image", image, "jpeg")

    def _event(self, name: str, image: dict[str, Any], image_format: str) -> bytes:
        kind = f"{self._kind}.{name}"
        data = {
            "type": kind,
            **image,
            "created_at": int(self._job.created_at.timestamp()),
            "size": self._size,
            "quality": "auto",
            "background": "opaque",
            "output_format": image_format,
        }
        return sse(_json.encode(data), kind)

    @property
    def _size(self) -> str:
        return f"{self._job.width}x{self._job.height}"
