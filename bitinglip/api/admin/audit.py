"""Serves the routes of the audit log: what was done, by whom, and whether the log is whole."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import json_response
from bitinglip.api.documentation import list_query
from bitinglip.api.paging import check_query, read_page
from bitinglip.api.services import services_of
from bitinglip.audit.query import NAMES, parse_filter

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])


@router.get("", openapi_extra=list_query(*NAMES))
@requires_scope(Scope.ADMIN)
async def list_entries(request: Request) -> Response:
    """List what was done, the newest first; ``action`` is one, or a group such as ``key``."""
    page = read_page(request, *NAMES)
    wanted = parse_filter(request.query_params)
    rows, total = await services_of(request).audit.list(
        wanted, limit=page.limit, offset=page.offset
    )
    return page.part(rows, total)


@router.get("/verify")
@requires_scope(Scope.ADMIN)
async def verify(request: Request) -> Response:
    """Check every entry; ``first_bad`` is the first that was changed, removed or forged."""
    check_query(request)
    verdict = await services_of(request).audit.verify()
    return json_response(
        {"valid": verdict.valid, "rows": verdict.rows, "first_bad": verdict.first_bad}
    )
