"""Serves the route of files that tasks have made: images and sounds."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from bitinglip.access.credentials import Credential
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import (
    caller_of,
    check_address,
    declare_scope,
    failed_login,
    requires_inference_scope,
)
from bitinglip.api.paging import check_query
from bitinglip.api.services import services_of
from bitinglip.db.tables import StoredFile
from bitinglip.errors import FileGone, InvalidToken
from bitinglip.wire.kinds import KINDS
from bitinglip.wire.model_lookup import check_model, check_owner

router = APIRouter(prefix="/api/v1/files", tags=["tasks"])


async def get_file(request: Request, file_id: str) -> Response:
    """Send an image or a sound that one of the caller's tasks has made; files expire.

    A link that the server has signed needs no key.
    """
    if "signature" in request.query_params:
        return await _get_linked(request, file_id)
    return await _get_owned(request, file_id=file_id)


@requires_inference_scope
async def _get_owned(request: Request, file_id: str) -> Response:
    check_query(request)
    files, caller = services_of(request).files, caller_of(request)
    row = await files.get(file_id)
    check_owner(caller, row.key_id, row.kind, FileGone)
    check_model(caller, row.model)
    return _respond(request, row)


async def _get_linked(request: Request, file_id: str) -> Response:
    """Send a file to whom the owner gave its link, for as long as the owner may have it.

    Raises InvalidToken for a signature that is not ours, FileGone once the link has ended, and
    IpNotAllowed where the owner's key is not for the address.
    """
    check_query(request, "expires", "signature")
    services = services_of(request)
    expires, signature = (request.query_params.get(name, "") for name in ("expires", "signature"))
    if not services.links.is_ours(file_id, expires, signature):
        raise failed_login(request, InvalidToken())
    if not services.links.is_open(expires):
        raise FileGone()
    row = await services.files.get(file_id)
    owner = Credential(row.key_id)
    if not services.tokens.grants(owner, KINDS[row.kind].scope, row.model):
        raise FileGone()
    if (caller := services.keys.caller(owner)) is not None:
        check_address(request, caller)
    return _respond(request, row)


def _respond(request: Request, row: StoredFile) -> Response:
    return FileResponse(
        services_of(request).files.path(row),
        media_type=row.media_type,
        headers={"cache-control": "private, no-store"},
    )


router.get("/{file_id}")(declare_scope(get_file, Scope.TEXT, LimitClass.LIGHT))
