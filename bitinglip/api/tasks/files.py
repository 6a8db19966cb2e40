"""The route of files that tasks have made: images and sounds."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from bitinglip.api.auth import caller_of, requires_inference_scope
from bitinglip.api.lookup import check_model, check_owner
from bitinglip.api.paging import check_query
from bitinglip.api.services import services_of
from bitinglip.errors import FileGone

router = APIRouter(prefix="/api/v1/files", tags=["tasks"])


@router.get("/{file_id}")
@requires_inference_scope
async def get_file(request: Request, file_id: str) -> Response:
    """Send an image or a sound that one of the caller's tasks has made; files expire."""
    check_query(request)
    files, caller = services_of(request).files, caller_of(request)
    row = await files.get(file_id)
    check_owner(caller, row.key_id, row.kind, FileGone)
    check_model(caller, row.model)
    return FileResponse(
        files.path(row),
        media_type=row.media_type,
        headers={"cache-control": "private, no-store"},
    )
