"""Serves the profile of the server's own process, for admins."""

import asyncio
import threading

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from bitinglip.access.scopes import Scope
from bitinglip.api.audited import audited, note_change
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import json_response
from bitinglip.api.paging import check_query
from bitinglip.api.services import services_of
from bitinglip.audit.entry import Action
from bitinglip.errors import Conflict, InvalidRequest
from bitinglip.telemetry.profile import Profiling

router = APIRouter(prefix="/api/v1/debug", tags=["operations"])

_LEAST, _USUAL, _MOST = 0.1, 5.0, 60.0  #: seconds
_QUERY = {
    "parameters": [
        {
            "name": "seconds",
            "in": "query",
            "schema": {"type": "number", "minimum": _LEAST, "maximum": _MOST, "default": _USUAL},
        },
        {
            "name": "format",
            "in": "query",
            "schema": {"enum": ["speedscope", "folded"], "default": "speedscope"},
        },
    ]
}


@router.get("/profile", openapi_extra=_QUERY)
@requires_scope(Scope.ADMIN)
@audited(Action.SERVER_PROFILE)
async def profile(request: Request) -> Response:
    """Sample what the server's own threads do for some seconds, as a file for speedscope.app."""
    check_query(request, "seconds", "format")
    seconds, shape = _seconds(request), request.query_params.get("format", "speedscope")
    if shape not in ("speedscope", "folded"):
        raise InvalidRequest("'format' must be speedscope or folded.", param="format")
    note_change(request, target="profile", after={"seconds": seconds})
    stop = threading.Event()
    try:
        taken = await asyncio.to_thread(services_of(request).profiler.take, seconds, stop)
    except Profiling:
        raise Conflict("Another profile is being taken; try again after it.") from None
    finally:
        stop.set()  # the server is stopping
    if shape == "folded":
        return PlainTextResponse(taken.folded())
    return json_response(taken.speedscope())


def _seconds(request: Request) -> float:
    text = request.query_params.get("seconds", str(_USUAL))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _LEAST <= seconds <= _MOST:
        raise InvalidRequest(
            f"'seconds' must be a number from {_LEAST:g} to {_MOST:g}.", param="seconds"
        )
    return seconds
