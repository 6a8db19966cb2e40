"""Serves clients' files for batches, and the results of these, on OpenAI's surface."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import caller_of, requires_scope
from bitinglip.api.batches.owned import owner_of, read_limit
from bitinglip.api.body import json_response
from bitinglip.api.documentation import form_body
from bitinglip.api.forms import read_form, single_file
from bitinglip.api.services import services_of
from bitinglip.db.tables import ClientFile
from bitinglip.errors import Conflict, FileGone, InvalidRequest
from bitinglip.wire.batches import FileFields, file_object
from bitinglip.wire.model_lookup import check_owner
from bitinglip.wire.openai_lists import page_of

_MOST_LISTED = 10_000
_CHUNK = 256 * 1024  #: bytes that are sent at once

router = APIRouter(prefix="/v1/files", tags=["openai"])


@router.post("", openapi_extra=form_body(FileFields, "file"))
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def upload_file(request: Request) -> Response:
    """Keep a file: the requests of a batch, one JSON object a line."""
    body, files = await read_form(request, FileFields, {"file"})
    received = single_file(files)
    row = await services_of(request).batches.files.keep(
        received, caller_of(request).key_id, received.name, body.expires_after_seconds
    )
    return json_response(file_object(row))


@router.get("")
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def list_files(request: Request) -> Response:
    """List the caller's files, the newest first; an admin sees all."""
    query = request.query_params
    limit = read_limit(request, _MOST_LISTED, most=_MOST_LISTED)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be asc or desc.", param="order")
    rows = await services_of(request).batches.files.list(
        key_id=owner_of(request),
        purpose=query.get("purpose"),
        after=query.get("after"),
        most=limit + 1,
        newest=order == "desc",
    )
    return json_response(page_of([file_object(row) for row in rows], limit))


@router.get("/{file_id}")
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def get_file(request: Request, file_id: str) -> Response:
    """Show a file, without what it holds."""
    return json_response(file_object(await find_file(request, file_id)))


@router.get("/{file_id}/content")
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def get_content(request: Request, file_id: str) -> Response:
    """Send what a file holds; of the results of a batch that goes on, those that there are."""
    row, files = await find_file(request, file_id), services_of(request).batches.files
    try:
        file, size = await asyncio.to_thread(_opened, files.path(row.id))
    except FileNotFoundError:
        raise FileGone() from None
    return StreamingResponse(
        _parts(file, size),
        media_type="application/octet-stream",
        headers={"content-length": str(size), "cache-control": "private, no-store"},
    )


@router.delete("/{file_id}")
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def delete_file(request: Request, file_id: str) -> Response:
    """Delete a file, unless a batch needs it that has not ended."""
    services, row = services_of(request), await find_file(request, file_id)
    if row.id in await services.batches.files_in_use():
        raise Conflict("A batch that has not ended needs this file.")
    await services.batches.files.delete(row.id)
    return json_response({"id": row.id, "object": "file", "deleted": True})


async def find_file(request: Request, file_id: str) -> ClientFile:
    """Return a file of the caller's. Raises FileGone."""
    row = await services_of(request).batches.files.get(file_id)
    check_owner(caller_of(request), row.key_id, "text", FileGone)
    return row


def _opened(path: Path) -> tuple[BinaryIO, int]:
    """Open a file; return it and its bytes now. Raises OSError."""
    file = path.open("rb")
    return file, os.fstat(file.fileno()).st_size


def _parts(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield so many bytes: a file of results may grow meanwhile."""
    with file:
        while size and (data := file.read(min(size, _CHUNK))):
            size -= len(data)
            yield data
