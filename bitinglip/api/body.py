"""JSON bodies of requests and responses."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import (
    UnsupportedMediaType,
)
from bitinglip.wire.parse import LARGE, parse

#: One thread: a body takes many times its size while it is read, so large ones take turns.
_LARGE_BODIES = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M]) -> M:
    """Read and check a JSON body. Raises UnsupportedMediaType, or what ``parse`` raises."""
    if media_type_of(request) != "application/json":
        raise UnsupportedMediaType()
    # Not request.body(), which keeps the bytes for as long as the request lives.
    return await parsed(model, b"".join([chunk async for chunk in request.stream()]))


async def read_optional_body(request: Request, model: type[M]) -> M:
    """Read a JSON body that may be left out; then each field has its default."""
    fields = request.headers
    if "transfer-encoding" not in fields and fields.get("content-length", "0") == "0":
        return model()
    return await read_body(request, model)


async def parsed(model: type[M], raw: bytes) -> M:
    """Validate a JSON body; a large one beside the event loop. Raises what wire.parse raises."""
    if len(raw) <= LARGE:
        return parse(model, raw)
    return await asyncio.get_running_loop().run_in_executor(_LARGE_BODIES, parse, model, raw)


def media_type_of(request: Request) -> str:
    """Return the media type of the request's body in lower case, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
