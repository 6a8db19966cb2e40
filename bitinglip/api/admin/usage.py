"""The route of usage: what keys have used, by key, model, day or month."""

from datetime import date

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.access.usage.rows import GROUPS, Wanted
from bitinglip.api.auth import ANY_KEY, caller_of, requires_scope
from bitinglip.api.documentation import list_query
from bitinglip.api.paging import read_page
from bitinglip.api.services import Services, services_of
from bitinglip.errors import DatabaseUnavailable, DiskFull, InsufficientScope, InvalidRequest

router = APIRouter(prefix="/api/v1/usage", tags=["keys"])

_FILTERS = ("key_id", "model", "from", "to", "group_by")
_DEFAULT_GROUPS = "day,key,model"


@router.get("", openapi_extra=list_query(*_FILTERS))
@requires_scope(ANY_KEY)
async def get_usage(request: Request) -> Response:
    """Sum what was used by day (UTC), key and model; an admin sees all keys, others their own.

    `group_by` takes some of day, month, key and model, by commas; `from` and `to` are days.
    """
    page = read_page(request, *_FILTERS)
    services, query = services_of(request), request.query_params
    wanted = Wanted(
        by=_groups(query.get("group_by", _DEFAULT_GROUPS)),
        key_id=_key_of(request),
        model=query.get("model"),
        first=_day(request, "from"),
        last=_day(request, "to"),
    )
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


def _groups(text: str) -> list[str]:
    names = text.split(",")
    if len(set(names)) < len(names) or not set(names) <= set(GROUPS):
        raise InvalidRequest(
            f"'group_by' names some of {', '.join(GROUPS)}, each once.", param="group_by"
        )
    if {"day", "month"} <= set(names):
        raise InvalidRequest("'group_by' takes day or month, not both.", param="group_by")
    return names


def _day(request: Request, name: str) -> date | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        if len(text) == len("2026-11-27"):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise InvalidRequest(f"'{name}' is a day such as 2026-11-27.", param=name)
