"""Serves the route of usage: what keys have used, by key, model, day or month."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import ANY_KEY, caller_of, requires_scope
from bitinglip.api.documentation import list_query
from bitinglip.api.paging import read_page
from bitinglip.api.services import Services, services_of
from bitinglip.errors import DatabaseUnavailable, DiskFull, InsufficientScope
from bitinglip.wire.admin.usage import FILTERS, wanted_usage

router = APIRouter(prefix="/api/v1/usage", tags=["keys"])


@router.get("", openapi_extra=list_query(*FILTERS))
@requires_scope(ANY_KEY)
async def get_usage(request: Request) -> Response:
    """Sum what was used by day (UTC), key and model; an admin sees all keys, others their own.

    `group_by` takes some of day, month, key and model, by commas; `from` and `to` are days.
    """
    page = read_page(request, *FILTERS)
    services = services_of(request)
    wanted = wanted_usage(request.query_params, _key_of(request))
    await _write(services)
    rows, total = await services.usage.page(wanted, limit=page.limit, offset=page.offset)
    names = {record.id: record.name for record in services.keys.list()}
    for row in rows:
        if "key_id" in row:
            row["key_name"] = names.get(row["key_id"])
    return page.part(rows, total)


async def _write(services: Services) -> None:
    """Have the sums hold what has been answered already, if the database can be written."""
    try:
        await services.write_behind.flush()
    except (DiskFull, DatabaseUnavailable):
        return  # /health says so; what is written is told


def _key_of(request: Request) -> str | None:
    """Return the key whose usage is shown; None for all. Raises InsufficientScope."""
    caller, wanted = caller_of(request), request.query_params.get("key_id")
    if caller.may(Scope.ADMIN):
        return wanted
    if wanted not in (None, caller.key_id):
        raise InsufficientScope("Only an admin sees another key's usage.", param="key_id")
    return caller.key_id
