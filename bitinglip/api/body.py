"""JSON bodies of requests and responses."""

from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import UnsupportedMediaType
from bitinglip.wire.parse import parse

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M]) -> M:
    """Read and check a JSON body. Raises UnsupportedMediaType, or what ``parse`` raises."""
    if media_type_of(request) != "application/json":
        raise UnsupportedMediaType()
    return parse(model, await request.body())


def media_type_of(request: Request) -> str:
    """Return the media type of the request's body in lower case, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
