"""Serves the route of the response cache."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.audited import audited, note_change
from bitinglip.api.auth import caller_of, requires_scope
from bitinglip.api.paging import check_query
from bitinglip.api.services import services_of
from bitinglip.audit.entry import Action

router = APIRouter(prefix="/api/v1/cache", tags=["cluster"])


@router.delete("", status_code=204)
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.CACHE_CLEAR)
async def clear_cache(request: Request) -> Response:
    """Forget the cached answers of all models that the caller's key is for.

    Other gateways that share the database or Redis forget those of all models.
    """
    check_query(request)
    services = services_of(request)
    caller = caller_of(request)
    await services.cache.clear_everywhere(caller.may_use)
    note_change(request, target=",".join(caller.models or ("*",)))
    return Response(status_code=204)
