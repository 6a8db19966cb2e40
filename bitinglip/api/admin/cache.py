"""The route of the response cache."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import caller_of, requires_scope
from bitinglip.api.paging import check_query
from bitinglip.api.services import services_of

router = APIRouter(prefix="/api/v1/cache", tags=["cluster"])


@router.delete("", status_code=204)
@requires_scope(Scope.CLUSTER_WRITE)
async def clear_cache(request: Request) -> Response:
    """Forget the cached answers of all models that the caller's key is for."""
    check_query(request)
    services = services_of(request)
    services.cache.clear(caller_of(request).may_use)
    return Response(status_code=204)
