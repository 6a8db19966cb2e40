"""Routes of API keys. A secret is shown once, when its key is made."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.expiry import parse_expiry
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import json_response, read_body
from bitinglip.api.documentation import json_body, list_query
from bitinglip.api.paging import read_page
from bitinglip.api.services import services_of
from bitinglip.wire.admin.keys import CreateKeyRequest, key_info

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])

_DEFAULT_TIER = "free"


@router.post("", status_code=201, openapi_extra=json_body(CreateKeyRequest))
@requires_scope(Scope.ADMIN)
async def create_key(request: Request) -> Response:
    """Make a key. Its secret is in this answer and nowhere else."""
    body = await read_body(request, CreateKeyRequest)
    record, secret = await services_of(request).keys.create(
        name=body.name,
        scopes=body.scopes,
        tier=body.tier or _DEFAULT_TIER,
        expires_at=parse_expiry(body.expires) if body.expires else None,
    )
    return json_response({**key_info(record), "key": secret}, 201)


@router.get("", openapi_extra=list_query())
@requires_scope(Scope.ADMIN)
async def list_keys(request: Request) -> Response:
    """List all keys, revoked ones too."""
    page = read_page(request)
    return page.of([key_info(record) for record in services_of(request).keys.list()])


@router.get("/{key_id}")
@requires_scope(Scope.ADMIN)
async def get_key(request: Request, key_id: str) -> Response:
    """Show one key, without its secret."""
    return json_response(key_info(services_of(request).keys.get(key_id)))


@router.delete("/{key_id}", status_code=204)
@requires_scope(Scope.ADMIN)
async def revoke_key(request: Request, key_id: str) -> Response:
    """Revoke a key; its record stays."""
    await services_of(request).keys.revoke(key_id)
    return Response(status_code=204)
