"""OpenAI's surface shows an image job as finished images, or as events with partial ones."""

from base64 import b64encode
from collections.abc import Callable
from typing import Any

import msgspec

from bitinglip.errors import BitingLipError
from bitinglip.results.files import Files, outputs_of
from bitinglip.results.streams import sse
from bitinglip.scheduling.event_log import Event, EventLog
from bitinglip.wire.openai_view import OpenAIView
from workers import protocol

_json = msgspec.json.Encoder()


class ImagesView(OpenAIView):
    """Shows a job as one object, or as partial images and a last one.

    ``kind``: image_generation or image_edit; ``address``: gives the client's URL of a file.
    """

    def __init__(
        self,
        event_log: EventLog,
        request_id: str,
        files: Files,
        *,
        kind: str,
        address: Callable[[str], str],
        partial: int,
    ) -> None:
        super().__init__(event_log, request_id)
        assert isinstance(event_log.job.work, protocol.ImageJob)
        self._job = event_log.job
        self._work = event_log.job.work
        self._files = files
        self._kind = kind
        self._address = address
        self._partial_left = partial
        self._partial_sent = 0
        self._data: list[dict[str, Any]] = []
        self._error: BitingLipError | None = None

    async def prepare_final(self) -> None:
        """Register the images (url), or read them into the answer."""
        try:
            if self._job.output == "url":
                await self._files.register(self._event_log)
            for made in outputs_of(self._event_log):
                if self._job.output == "url":
                    self._data.append({"url": self._address(made.id)})
                else:
                    self._data.append({"b64_json": await self._files.base64(made.id)})
        except BitingLipError as error:
            self._error = error

    def render(self, event: Event) -> bytes:
        match event:
            case protocol.Progress(preview=preview) if preview and self._partial_left:
                return self._partial(preview)
            case protocol.ImageDone() if self._error is not None:
                return self.error_event(self._error)
            case protocol.ImageDone():
                return self._event("completed", self._data[0], self._work.format)
            case _:
                return super().render(event)

    def body(self) -> bytes:
        if self._error is not None:
            raise self._error
        return _json.encode(
            {
                "created": int(self._job.created_at.timestamp()),
                "data": self._data,
                "output_format": self._work.format,
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
        return f"{self._work.width}x{self._work.height}"
