"""Serves the routes of session tokens: a key makes a short-lived token."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.api.audited import actor_of, audited, note_change
from bitinglip.api.auth import ANONYMOUS, ANY_KEY, caller_of, requires_scope
from bitinglip.api.body import json_response, read_optional_body
from bitinglip.api.documentation import json_body
from bitinglip.api.services import services_of
from bitinglip.audit.entry import Action
from bitinglip.errors import InvalidRequest, InvalidToken
from bitinglip.wire.admin.tokens import RevokeTokenRequest, TokenRequest

router = APIRouter(prefix="/api/v1/auth", tags=["keys"])


@router.post("/token", openapi_extra=json_body(TokenRequest, required=False))
@requires_scope(ANY_KEY)
@audited(Action.TOKEN_ISSUE)
async def make_token(request: Request) -> Response:
    """Make a token with scopes of the caller's key; it is good wherever a key is."""
    body = await read_optional_body(request, TokenRequest)
    caller = caller_of(request)
    if caller is ANONYMOUS:
        raise InvalidRequest("A token is made with a key, and this request has none.")
    made = services_of(request).tokens.issue(caller, body.scopes, body.ttl)
    after = {"scopes": made.scopes, "expires_in": made.expires_in}
    note_change(request, target=made.id, after=after)
    return json_response(
        {
            "access_token": made.text,
            "token_type": "bearer",
            "expires_in": made.expires_in,
            "scopes": made.scopes,
        }
    )


@router.post(
    "/revoke", status_code=204, openapi_extra=json_body(RevokeTokenRequest, required=False)
)
@requires_scope(ANY_KEY)
@audited(Action.TOKEN_REVOKE, in_transaction=True)
async def revoke_token(request: Request) -> Response:
    """Revoke a token, or the one that the request came with; all its work ends."""
    body = await read_optional_body(request, RevokeTokenRequest)
    tokens, caller = services_of(request).tokens, caller_of(request)
    if body.token is not None:
        try:
            await tokens.revoke(body.token, by=actor_of(request))
        except InvalidToken:
            raise InvalidRequest(
                "This is no token of this server, or it has expired.", param="token"
            ) from None
    elif caller.token:
        await tokens.revoke_own(caller, by=actor_of(request))
    else:
        raise InvalidRequest("Name a token, or send the one to revoke.", param="token")
    return Response(status_code=204)
