"""The files that tasks made: images, sounds."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import caller_of, requires_inference_scope
from bitinglip.api.paging import check_query
from bitinglip.api.services import services_of
from bitinglip.errors import FileGone, InsufficientScope
from bitinglip.wire.kinds import KINDS

router = APIRouter(prefix="/api/v1/files", tags=["tasks"])


@router.get("/{file_id}")
@requires_inference_scope
async def get_file(request: Request, file_id: str) -> Response:
    """An image or a sound that one of the caller's tasks made; it expires."""
    check_query(request)
    files, caller = services_of(request).files, caller_of(request)
    row = await files.get(file_id)
    if row.key_id != caller.key_id and not caller.may(Scope.ADMIN):
        raise FileGone()
    scope = KINDS[row.kind].scope
    if not caller.may(scope):
        raise InsufficientScope(f"This file needs the scope {scope}.", details={"required": scope})
    return FileResponse(
        files.path(row),
        media_type=row.media_type,
        headers={"cache-control": "private, max-age=3600, immutable"},
    )
