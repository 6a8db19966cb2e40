"""Reads the JSON bodies of requests, and writes those of responses."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from bitinglip.api.auth import caller_of, confirm_caller
from bitinglip.api.request_context import context_of
from bitinglip.api.services import services_of
from bitinglip.errors import UnsupportedMediaType
from bitinglip.wire.openai_body import OpenAIRequest, unknown_field
from bitinglip.wire.parse import check_shape, is_large, parse
from bitinglip.wire.plain import read_plain

#: One thread: a body takes many times its size while it is read, so large ones take turns.
_LARGE_BODIES = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")

_IGNORED = b"x-ignored-fields"

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M]) -> M:
    """Read and check a JSON body.

    Raises UnsupportedMediaType, QueueFull, ClientDisconnect, or what ``confirm_caller`` and
    ``parse`` raise.
    """
    if media_type_of(request) != "application/json":
        raise UnsupportedMediaType()
    # Not request.body(), which keeps the bytes for as long as the request lives.
    first, more = await next_part(request)
    if not more and not is_large(first):
        confirm_caller(request)
        return note_ignored(request, *_parsed(model, first))
    with input_memory(request) as grow:
        raw = await _rest(request, first, more, grow)
        confirm_caller(request)
        return note_ignored(request, *await parsed(model, raw))


def note_ignored(request: Request, body: M, names: Sequence[str]) -> M:
    """Return the body; the response will name the fields of it that were ignored, if any.

    Raises UnsupportedParameter where the settings refuse such fields.
    """
    if names:
        note_fields(request, names)
    return body


def note_fields(request: Request, names: Sequence[str]) -> None:
    """Have the response name fields that were ignored, after those it names already.

    Raises UnsupportedParameter where the settings refuse such fields.
    """
    services = services_of(request)
    if services.settings.openai.unknown_fields == "refuse":
        raise unknown_field(names[0])
    context = context_of(request.scope)
    noted = [value.decode() for name, value in context.notices if name == _IGNORED]
    others = tuple(each for each in context.notices if each[0] != _IGNORED)
    context.notices = (*others, (_IGNORED, ", ".join([*noted, *names]).encode()))
    if not noted:
        services.metrics.fields_ignored()


async def read_optional_body(request: Request, model: type[M]) -> M:
    """Read a JSON body that may be left out; then each field has its default."""
    fields = request.headers
    if "transfer-encoding" not in fields and fields.get("content-length", "0") == "0":
        return model()
    return await read_body(request, model)


async def _rest(
    request: Request, first: bytes, more: bool, grow: Callable[[int], None]
) -> bytes | bytearray:
    """Read a body to its end, counting its bytes. Raises QueueFull or ClientDisconnect."""
    grow(len(first))
    if not more:
        return first
    raw = bytearray(first)  # and no list: parts may be small
    while more:
        part, more = await next_part(request)
        grow(len(part))
        raw += part
    return raw


async def next_part(request: Request) -> tuple[bytes, bool]:
    """Return what has come of the body, and whether there is more. Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect()
    return message.get("body", b""), message.get("more_body", False)


@contextmanager
def input_memory(request: Request) -> Iterator[Callable[[int], None]]:
    """Count input of the caller's until the block is left; see ``InputMemory.growing``."""
    memory = services_of(request).dispatcher.delivery.input_memory
    with memory.growing(caller_of(request).key_id) as grow:
        yield grow


async def parsed(model: type[M], raw: bytes | bytearray) -> tuple[M, Sequence[str]]:
    """Validate a JSON body, a large one beside the event loop; name its fields to be ignored.

    Raises what wire.parse raises.
    """
    if not is_large(raw):
        return _parsed(model, raw)
    return await asyncio.get_running_loop().run_in_executor(_LARGE_BODIES, _parsed, model, raw)


def _parsed(model: type[M], raw: bytes | bytearray) -> tuple[M, Sequence[str]]:
    check_shape(raw)
    if (plain := read_plain(model, raw)) is not None:
        return plain, ()
    body = parse(model, raw)
    return body, body.ignored() if isinstance(body, OpenAIRequest) else ()


def media_type_of(request: Request) -> str:
    """Return the media type of the request's body in lower case, without its parameters."""
    value = context_of(request.scope).fields.get(b"content-type", b"")
    if value == b"application/json":
        return "application/json"
    return value.decode("latin-1").partition(";")[0].strip().lower()


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
