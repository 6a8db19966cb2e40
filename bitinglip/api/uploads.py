"""Checks files that clients send without decoding them, then writes them for the worker."""

import asyncio
import base64
import binascii
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bitinglip.api.services import Services
from bitinglip.errors import InvalidRequest
from bitinglip.results.pictures import IsAnimation, NotAPicture, size_of
from bitinglip.results.uploads import ReceivedFile
from bitinglip.scheduling.job import Job

MAX_UPLOAD_PIXELS = 64_000_000
#: its own, so that nothing else of the server stands behind clients' files; each takes milliseconds
_CHECKS = ThreadPoolExecutor(1, thread_name_prefix="uploads")


@dataclass(frozen=True, slots=True)
class Upload:
    """Describes a picture as the client sent it; sides in pixels."""

    data: bytes | ReceivedFile
    width: int
    height: int


async def decode_image(text: str, param: str) -> Upload:
    """Decode a picture in base64 or a ``data:`` URL, and inspect it. Raises InvalidRequest."""
    return await asyncio.get_running_loop().run_in_executor(_CHECKS, _decode_image, text, param)


async def inspect_image(file: ReceivedFile, param: str) -> Upload:
    """Check format, size and frames in a picture's header. Raises InvalidRequest."""
    return await asyncio.get_running_loop().run_in_executor(_CHECKS, _inspect, file, param)


async def store_uploads(
    services: Services, job: Job, files: Mapping[str, bytes | ReceivedFile], *, held: int = 0
) -> None:
    """Write the files of a job that the queue has room for; ``held`` as in ``Dispatcher.check``.

    Raises what ``Dispatcher.check`` and ``Uploads.save`` raise.
    """
    services.dispatcher.check(job, held)
    await services.uploads.save(job, files)


async def decode_base64(text: str, param: str) -> bytes:
    """Decode a field in base64. Raises InvalidRequest."""
    return await asyncio.get_running_loop().run_in_executor(_CHECKS, _decode_base64, text, param)


def _decode_base64(text: str, param: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"'{param}' is not base64.", param=param) from None


def _decode_image(text: str, param: str) -> Upload:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    return _inspect(_decode_base64(text, param), param)


def _inspect(data: bytes | ReceivedFile, param: str) -> Upload:
    """Read the header only; the pixels are decoded in the worker, whose crash costs less."""
    try:
        if isinstance(data, bytes):
            width, height = size_of(io.BytesIO(data))
        else:
            with data.path.open("rb") as file:
                width, height = size_of(file)
    except (NotAPicture, OSError):
        raise InvalidRequest(
            f"'{param}' is not a picture in PNG, JPEG or WebP.", param=param
        ) from None
    except IsAnimation:
        raise InvalidRequest(
            f"'{param}' must be a single picture, not an animation.", param=param
        ) from None
    if width * height > MAX_UPLOAD_PIXELS:
        most = MAX_UPLOAD_PIXELS // 1_000_000
        raise InvalidRequest(f"'{param}' has more than {most} megapixels.", param=param)
    return Upload(data, width, height)
