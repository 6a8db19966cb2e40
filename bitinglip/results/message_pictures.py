"""Checks the pictures in the messages of a request, and writes them to files for the worker.

Their headers are read here; pixels are decoded in the worker, whose crash costs less. Nothing is
fetched: a picture comes in the request itself.
"""

import asyncio
import base64
import binascii
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import NamedTuple

import msgspec

from bitinglip.errors import InvalidRequest, UnsupportedParameter
from bitinglip.results.pictures import IsAnimation, NotAPicture, size_of
from bitinglip.results.uploads import Uploads
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.job import Job
from bitinglip.settings.limits import PictureLimits
from bitinglip.work.text import TextTraits
from model_store.manifest import VISION, Manifest
from workers.protocol import ChatMessage, Picture, TextJob

_MILLION = 1_000_000
#: its own, so that nothing else of the server stands behind clients' pictures
_CHECKS = ThreadPoolExecutor(1, thread_name_prefix="pictures")


class _Found(NamedTuple):
    """Holds messages whose pictures name files, and what is to be written to these, in order."""

    messages: tuple[ChatMessage, ...]
    files: list[bytes]


class MessagePictures:
    """Takes the pictures of jobs. They are uploads: removed once their job has ended."""

    def __init__(self, limits: PictureLimits, uploads: Uploads, dispatcher: Dispatcher) -> None:
        self._limits = limits
        self._uploads = uploads
        self._dispatcher = dispatcher

    async def stored(self, job: Job, manifest: Manifest, *, field: str = "messages") -> Job:
        """Return the job with its pictures in files; one without pictures as it is.

        ``field``: the request's, which holds them. Raises InvalidRequest or UnsupportedParameter
        for what is no picture, is too large, or is for a model that reads none; further what
        ``Dispatcher.check`` and ``Uploads.save`` raise.
        """
        traits, work = job.traits, job.work
        pictures = traits.size.pictures if isinstance(traits, TextTraits) else ()
        if not pictures:
            return job
        assert isinstance(work, TextJob)
        assert work.messages is not None
        param = _place(work.messages) if field == "messages" else field
        if VISION not in manifest.capabilities:
            raise UnsupportedParameter(
                f"'{param}' is a picture, and this model reads none.", param=param
            )
        if len(pictures) > self._limits.max_count:
            raise InvalidRequest(
                f"The request has {len(pictures)} pictures; at most {self._limits.max_count} are "
                "allowed.",
                param=field,
                details={"pictures": self._limits.max_count},
            )
        with self._dispatcher.delivery.input_memory.growing(job.key_id) as grow:
            held = sum(len(each.source) for each in pictures)
            grow(held)
            found = await asyncio.get_running_loop().run_in_executor(
                _CHECKS, self._found, work.messages, job.id, field
            )
            work = msgspec.structs.replace(work, messages=found.messages)
            stored = msgspec.structs.replace(job, work=work)
            self._dispatcher.check(stored, held)
            names = (f"picture_{number}" for number in count())
            await self._uploads.save(stored, dict(zip(names, found.files, strict=False)))
        return stored

    def discard(self, job: Job) -> None:
        """Remove the files of a job that is over."""
        self._uploads.discard(job)

    def _found(self, messages: Sequence[ChatMessage], job_id: str, field: str) -> _Found:
        """Decode all pictures and read their headers. Raises InvalidRequest."""
        told: list[ChatMessage] = []
        files: list[bytes] = []
        pixels = 0
        for number, message in enumerate(messages):
            placed: list[Picture] = []
            for place, part in enumerate(message.parts() if message.pictures else ()):
                if isinstance(part, str):
                    continue
                param = f"messages[{number}].content[{place}]" if field == "messages" else field
                data = _decoded(part.source, param)
                width, height = _size(data, param)
                pixels += width * height
                self._check_pixels(pixels, param)
                path = str(self._uploads.folder / f"{job_id}-{len(files)}")
                placed.append(Picture(path, part.at, width, height))
                files.append(data)
            told.append(msgspec.structs.replace(message, pictures=tuple(placed)))
        return _Found(tuple(told), files)

    def _check_pixels(self, pixels: int, param: str) -> None:
        most = self._limits.max_megapixels
        if pixels > most * _MILLION:
            raise InvalidRequest(
                f"The pictures of a request have at most {most:g} megapixels together.",
                param=param,
                details={"megapixels": most},
            )


def _place(messages: Sequence[ChatMessage]) -> str:
    """Return the path of the first picture."""
    for number, message in enumerate(messages):
        for place, part in enumerate(message.parts()):
            if isinstance(part, Picture):
                return f"messages[{number}].content[{place}]"
    return "messages"


def _decoded(url: str, param: str) -> bytes:
    """Return what a data: URL holds. Raises InvalidRequest."""
    kind, comma, data = url.partition(",")
    kind = kind.lower()
    if not comma or not kind.startswith("data:") or not kind.endswith(";base64"):
        raise InvalidRequest(f"'{param}' is no data: URL in base64.", param=param)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"'{param}' is not base64.", param=param) from None


def _size(data: bytes, param: str) -> tuple[int, int]:
    """Return the width and height that a picture's header tells. Raises InvalidRequest."""
    try:
        return size_of(io.BytesIO(data), gif=True)
    except NotAPicture:
        raise InvalidRequest(
            f"'{param}' is not a picture in PNG, JPEG, WebP or GIF.", param=param
        ) from None
    except IsAnimation:
        raise InvalidRequest(
            f"'{param}' must be a single picture, not an animation.", param=param
        ) from None
