"""Serves the state of the cluster: at this moment, and as a stream of moments."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as HttpScope

from bitinglip.access.key_fields import OPERATOR
from bitinglip.access.keys import Caller
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.access.tokens import LIFETIME
from bitinglip.api.auth import caller_of, present_caller, requires_scope
from bitinglip.api.body import json_response
from bitinglip.api.documentation import list_query
from bitinglip.api.paging import check_query, read_page
from bitinglip.api.services import Services, services_of
from bitinglip.api.stream_writer import ClientGone, Connection, StreamWriter
from bitinglip.errors import ConcurrencyLimitExceeded
from bitinglip.results.streams import sse
from bitinglip.upstreams.servers import ServerView
from bitinglip.wire.admin.activity import last_errors, last_minute, queues_by_tier
from bitinglip.wire.admin.cluster import (
    device_info,
    gateway_info,
    model_state_info,
    node_info,
    reservation_info,
)
from bitinglip.wire.admin.requests import request_info
from bitinglip.wire.admin.workers import worker_info
from workers.confinement import Kernel

router = APIRouter(prefix="/api/v1/cluster", tags=["cluster"])

_encode = msgspec.json.Encoder().encode
#: streams of snapshots that a key may have at once: all are written to in the same moment
_MOST_WATCHES = 32


@router.get("/status")
@requires_scope(Scope.CLUSTER_READ)
async def cluster_status(request: Request) -> Response:
    """Show devices, memory, models, queues and workers at this moment."""
    services, caller = services_of(request), caller_of(request)
    mode = services.settings.workers.confine
    return json_response(
        {
            **_state(services, caller, admin=caller.may(Scope.ADMIN)),
            "confinement": {"mode": mode, **asdict(Kernel.find())},
        }
    )


@router.get("/events")
@requires_scope(Scope.CLUSTER_READ, LimitClass.LIGHT)
async def cluster_events(request: Request) -> Response:
    """Stream a `snapshot` each second: the cluster's status, its last minute and last errors.

    The stream ends after 15 minutes, with the right to it, or with the server; ask again then. A
    key may have 32 of them at once.
    """
    check_query(request)
    return SnapshotStream(services_of(request), caller_of(request))


@router.get("/requests", openapi_extra=list_query("model"))
@requires_scope(Scope.ADMIN)
async def last_requests(request: Request) -> Response:
    """List the last requests, the newest first, with the seconds of their stages; no bodies.

    What probes and watchers ask again and again is left out.
    """
    page = read_page(request, "model")
    services, model = services_of(request), request.query_params.get("model")
    names = {record.id: record.name for record in services.keys.list()}
    rows = [each for each in services.last_requests if model is None or each.model == model]
    shown = [
        request_info(
            each,
            names.get(each.key_id or ""),
            services.dispatcher.find(each.job_id) if each.job_id else None,
        )
        for each in rows[page.offset : page.offset + page.limit]
    ]
    return page.part(shown, len(rows))


class SnapshotStream(Response):
    """Sends snapshots to one watcher; all who may see the same share their bytes."""

    def __init__(self, services: Services, caller: Caller) -> None:
        self.background = None
        self._services = services
        self._caller = caller
        self._ends = time.monotonic() + LIFETIME

    async def __call__(self, scope: HttpScope, receive: Receive, send: Send) -> None:
        services = self._services
        silence = services.settings.server.stream_comment_interval
        writer = StreamWriter(scope, send, media_type=None, interval=silence)
        with self._place(), suppress(ClientGone), Connection(receive, writer.idle):
            await writer.begin()
            while (caller := self._present()) is not None:
                await writer.write(sse(self._snapshot(caller), "snapshot"))
                await asyncio.sleep(services.snapshots.seconds_left)
            await writer.write(b"", last=True)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Count the stream among its key's. Raises ConcurrencyLimitExceeded."""
        watches, caller = self._services.watches, self._caller
        most = math.inf if caller.tier == OPERATOR else _MOST_WATCHES
        if not watches.enter(caller.key_id, most):
            raise ConcurrencyLimitExceeded(
                f"This API key may have {_MOST_WATCHES} streams of snapshots at once.",
                details={"limit": _MOST_WATCHES},
            )
        try:
            yield
        finally:
            watches.leave(caller.key_id)

    def _present(self) -> Caller | None:
        """Return who watches, with what they may see now; None once the stream is to end."""
        if self._services.dispatcher.draining or time.monotonic() >= self._ends:
            return None
        tokens, keys, of = self._services.tokens, self._services.keys, self._caller.credential
        return present_caller(tokens, keys, of, Scope.CLUSTER_READ)

    def _snapshot(self, caller: Caller) -> bytes:
        """Return the present snapshot as this caller may see it."""
        services = self._services
        admin = self._caller.may(Scope.ADMIN) and caller.may(Scope.ADMIN)
        made = services.snapshots.get(dict)  # one for all who may see the same
        sees = (admin, caller.models)
        if sees not in made:
            made[sees] = _snapshot(services, caller, admin=admin)
        return made[sees]


def _snapshot(services: Services, caller: Caller, *, admin: bool) -> bytes:
    dispatcher = services.dispatcher
    event_logs = dispatcher.event_logs()
    return _encode(
        {
            "at": time.time(),
            **_state(services, caller, admin=admin),
            "tiers": queues_by_tier(event_logs, services.settings.limits.tiers),
            "last_minute": last_minute(event_logs, time.monotonic()),
            "totals": services.metrics.totals(),
            "errors": last_errors(event_logs, caller.may_use, messages=admin),
            "requests_seen": services.last_requests.total if admin else None,
        }
    )


def _state(services: Services, caller: Caller, *, admin: bool) -> dict[str, Any]:
    """Describe what a caller may see of the server's state."""
    dispatcher, operations = services.dispatcher, services.operations
    return {
        "status": "draining" if dispatcher.draining else "running",
        "in_flight": dispatcher.in_flight,
        "queued": dispatcher.queued,
        "load": round(dispatcher.overload.value, 3),
        "devices": [device_info(view) for view in operations.devices()],
        "nodes": [node_info(view) for view in services.cluster.views()] if services.cluster else [],
        "gateways": [gateway_info(view) for view in services.membership.views()]
        if services.membership
        else [],
        "upstreams": [
            _upstream_info(view, addresses=admin)
            for view in (services.upstreams.views() if services.upstreams else ())
            if caller.may_use(view.model)
        ],
        "missing_card": operations.device_problems().get("card"),
        "reservations": [
            reservation_info(view)
            for view in operations.reservations()
            if caller.may_use(view.model)
        ],
        "models": [
            model_state_info(name, services.settings.model(name), dispatcher, operations)
            for name in services.store.names()
            if caller.may_use(name)
        ],
        "workers": [
            worker_info(view)
            for view in operations.workers()
            if view.model is None or caller.may_use(view.model)
        ],
    }


def _upstream_info(view: ServerView, *, addresses: bool) -> dict[str, Any]:
    """Describe a server that answers for a model; ``addresses`` are for admins."""
    return {
        "model": view.model,
        "url": view.url if addresses else None,
        "state": "well" if view.reason is None else "failing",
        "reason": view.reason,
        "in_flight": view.running,
        "again_seconds": round(view.again_in, 3),
    }
