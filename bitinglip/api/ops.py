"""Serves the routes for operating the server: liveness, readiness, health, metrics."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip import __version__
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import authorize_limited, caller_of, declare_scope, from_this_machine
from bitinglip.api.body import json_response
from bitinglip.api.services import Services, services_in, services_of
from bitinglip.errors import DatabaseUnavailable
from bitinglip.redis.errors import RedisAway
from bitinglip.scheduling.queue.priority import tier_of
from bitinglip.wire.admin.cluster import device_health
from bitinglip.wire.errors import timestamp

router = APIRouter(tags=["operations"])

_CHECK_TIMEOUT = 2.0


@router.get("/livez")
async def livez(request: Request) -> Response:
    """Respond 200 while the process lives; 503 if the settings ask for it once no card is left."""
    services = services_in(request.scope)
    if services is not None and (reason := services.operations.not_alive()) is not None:
        return json_response({"status": "no card", "detail": reason}, 503)
    return json_response({"status": "alive"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Respond 200 if the server takes requests; 503 while it starts, drains or cannot serve."""
    services = services_of(request)
    if services.dispatcher.draining or services.health.leaving:
        return json_response({"status": "draining"}, 503)
    if not services.operations.bootstrapped:
        return json_response({"status": "starting"}, 503)
    if (reason := services.operations.lacks_card()) is not None:
        return json_response({"status": "no usable card", "detail": reason}, 503)
    if (await _checked(services.db.check))["ok"]:
        return json_response({"status": "ready"})
    return json_response({"status": "database unavailable"}, 503)


@router.get("/health")
async def health(request: Request) -> Response:
    """Check the parts of the server."""
    services = services_of(request)
    checks = {
        "database": await _checked(services.db.check),
        "cache": _cache(services),
        "redis": await _redis(services),
        "cluster_manager": _workers(services),
        "model_manager": _found(True, f"{len(services.store.names())} models"),
        "task_manager": _tasks(services),
        "guard": _found(True, _guard(services)),
        "devices": _devices(services),
    }
    answers = checks["database"]["ok"]
    _add_problems(checks, services.health.problems())
    status = _overall(checks) if answers else "unhealthy"
    body = {
        "status": status,
        "checks": checks,
        "timestamp": timestamp(datetime.now(UTC)),
        "version": __version__,
    }
    return json_response(body, 503 if status == "unhealthy" else 200)


async def metrics(request: Request) -> Response:
    """Render the metrics as Prometheus or OpenMetrics text; open to this machine, else by scope.

    A key that is narrowed to models sees those of its models.
    """
    may_see = None
    if not from_this_machine(request):
        await authorize_limited(request, Scope.CLUSTER_READ, LimitClass.LIGHT)
        caller = caller_of(request)
        may_see = caller.may_use if caller.models is not None else None
    accept = request.headers.get("accept", "")
    body, content_type = services_of(request).metrics.render(accept, may_see)
    return Response(body, headers={"content-type": content_type})


router.get("/metrics")(declare_scope(metrics, Scope.CLUSTER_READ, LimitClass.LIGHT))


def _guard(services: Services) -> str:
    """Tell whether the settings ask for the guard; one key may do so, too."""
    tiers = services.settings.limits.tiers
    names = type(tiers).model_fields
    on = any(services.guard.modes(name, tier_of(tiers, name)) for name in names)
    return "works" if on else "off, but for keys that ask for it"


def _overall(checks: dict[str, dict[str, Any]]) -> str:
    return "healthy" if all(check["ok"] for check in checks.values()) else "degraded"


def _add_problems(checks: dict[str, dict[str, Any]], problems: Mapping[str, str]) -> None:
    """Say in each check what the server does without for now."""
    for name, detail in problems.items():
        checks[name] |= {"ok": False, "detail": detail}


def _found(ok: bool, detail: str, latency_ms: float = 0.0) -> dict[str, Any]:
    return {"ok": ok, "detail": detail, "latency_ms": round(latency_ms, 3)}


async def _checked(check: Callable[[], Awaitable[None]]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT):
            await check()
        ok, detail = True, "answers"
    except (DatabaseUnavailable, OSError):
        ok, detail = False, "does not answer"
    return _found(ok, detail, (time.perf_counter() - began) * 1000)


async def _redis(services: Services) -> dict[str, Any]:
    """Tell whether Redis answers; while it does not, what that means is in the health."""
    if (link := services.shared_redis.link) is None:
        return _found(True, "off")
    began = time.perf_counter()
    try:
        await link.command("PING")
    except RedisAway:
        return _found(False, "does not answer")
    return _found(True, "answers", (time.perf_counter() - began) * 1000)


def _devices(services: Services) -> dict[str, Any]:
    """Name the devices, and tell of each how it is and when it has answered last."""
    devices = [device_health(each) for each in services.operations.devices()]
    return _found(True, ", ".join(each["id"] for each in devices)) | {"devices": devices}


def _workers(services: Services) -> dict[str, Any]:
    workers = services.operations.workers()
    broken = sum(services.operations.status(name) == "error" for name in services.store.names())
    detail = f"{len(workers)} workers"
    return _found(not broken, f"{detail}, {broken} models out of service" if broken else detail)


def _cache(services: Services) -> dict[str, Any]:
    if not services.cache.enabled:
        return _found(True, "off")
    entries, most = services.cache.entries, services.settings.cache.max_bytes
    return _found(entries.bytes <= most, f"{len(entries)} answers, {entries.bytes} of {most} bytes")


def _tasks(services: Services) -> dict[str, Any]:
    dispatcher = services.dispatcher
    if dispatcher.draining:
        return _found(False, "draining")
    return _found(True, f"{dispatcher.in_flight} in flight, {dispatcher.queued} queued")
