"""Routes of the audit log: what was done, by whom, and whether the log is whole."""

from datetime import UTC, datetime

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import json_response
from bitinglip.api.documentation import list_query
from bitinglip.api.paging import check_query, read_page
from bitinglip.api.services import services_of
from bitinglip.audit.entry import Action
from bitinglip.audit.log import Filter, microseconds
from bitinglip.errors import InvalidRequest

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

_FILTERS = ("actor", "action", "target", "from", "to")


@router.get("", openapi_extra=list_query(*_FILTERS))
@requires_scope(Scope.ADMIN)
async def list_entries(request: Request) -> Response:
    """List what was done, the newest first; ``action`` is one, or a group such as ``key``."""
    page = read_page(request, *_FILTERS)
    query = request.query_params
    wanted = Filter(
        actor=query.get("actor"),
        action=_action(query.get("action")),
        target=query.get("target"),
        since=_moment(request, "from"),
        until=_moment(request, "to"),
    )
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


def _action(name: str | None) -> str | None:
    if name is None or name in {part for each in Action for part in (each, each.partition(".")[0])}:
        return name
    raise InvalidRequest(f"'action' must be one of {', '.join(Action)}.", param="action")


def _moment(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return microseconds(moment.astimezone(UTC))
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"'{name}' must be a time in ISO 8601, such as 2030-01-31T12:00:00Z.", param=name
        ) from error
