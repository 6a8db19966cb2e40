"""Serves the routes of API keys. A secret is shown once, when its key is made."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.expiry import parse_expiry, parse_grace
from bitinglip.access.minting import check_grants, grant_of, granted
from bitinglip.access.scopes import DEFAULT, Scope
from bitinglip.access.usage.quotas import described
from bitinglip.api.audited import actor_of, audited
from bitinglip.api.auth import caller_of, requires_scope
from bitinglip.api.body import json_response, read_body, read_optional_body
from bitinglip.api.documentation import json_body, list_query
from bitinglip.api.paging import read_page
from bitinglip.api.services import services_of
from bitinglip.audit.entry import Action
from bitinglip.wire.admin.keys import (
    ChangeKeyRequest,
    CreateKeyRequest,
    RotateKeyRequest,
    key_info,
)

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])

_DEFAULT_TIER = "free"


@router.post("", status_code=201, openapi_extra=json_body(CreateKeyRequest))
@requires_scope(Scope.ADMIN)
@audited(Action.KEY_CREATE, in_transaction=True)
async def create_key(request: Request) -> Response:
    """Make a key, narrowed as the caller's own is. Its secret is in this answer only."""
    body = await read_body(request, CreateKeyRequest)
    own = grant_of(caller_of(request))
    fields: dict[str, Any] = {
        "scopes": DEFAULT if body.scopes is None else body.scopes,
        "tier": body.tier or _DEFAULT_TIER,
        "models": own.models if body.models is None else body.models,
        "ip_ranges": own.ip_ranges if body.ip_ranges is None else body.ip_ranges,
        "quotas": described(own.quotas) if body.quotas is None else body.quotas.model_dump(),
        "guard": body.guard or own.guard,
        "expires_at": parse_expiry(body.expires) if body.expires else own.expires_at,
    }
    check_grants(caller_of(request), granted(own, fields))
    keys, by = services_of(request).keys, actor_of(request)
    record, secret = await keys.create(name=body.name, by=by, **fields)
    return json_response({**key_info(record), "key": secret}, 201)


@router.patch("/{key_id}", openapi_extra=json_body(ChangeKeyRequest))
@requires_scope(Scope.ADMIN)
@audited(Action.KEY_UPDATE, in_transaction=True)
async def change_key(request: Request, key_id: str) -> Response:
    """Change a key's name, tier, scopes, expiry or narrowing; the next request meets it."""
    keys = services_of(request).keys
    body = await read_body(request, ChangeKeyRequest)
    present, fields = grant_of(keys.get(key_id)), body.changes()
    check_grants(caller_of(request), present)
    check_grants(caller_of(request), granted(present, fields))
    return json_response(key_info(await keys.change(key_id, by=actor_of(request), **fields)))


@router.post("/{key_id}/rotate", openapi_extra=json_body(RotateKeyRequest, required=False))
@requires_scope(Scope.ADMIN)
@audited(Action.KEY_ROTATE, in_transaction=True)
async def rotate_key(request: Request, key_id: str) -> Response:
    """Give a key a new secret, which is shown once; the old one works until the grace ends."""
    services = services_of(request)
    body = await read_optional_body(request, RotateKeyRequest)
    grace = parse_grace(body.grace)
    check_grants(caller_of(request), grant_of(services.keys.get(key_id)))
    by = actor_of(request)
    record, secret = await services.keys.rotate(key_id, grace, services.home, by=by)
    return json_response({**key_info(record), "key": secret})


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
@audited(Action.KEY_REVOKE, in_transaction=True)
async def revoke_key(request: Request, key_id: str) -> Response:
    """Revoke a key; its record stays."""
    await services_of(request).keys.revoke(key_id, by=actor_of(request))
    return Response(status_code=204)
