"""Serves the route of limits: what a key may do, and what it has left of it."""

import time
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.limits.gcra import SECOND, Reading
from bitinglip.access.limits.policy import Limit, LimitClass, Policy
from bitinglip.access.scopes import Scope
from bitinglip.access.usage.amounts import NAMES, shown_unit
from bitinglip.access.usage.meter import QuotaState
from bitinglip.api.auth import ANY_KEY, caller_of, requires_scope
from bitinglip.api.body import json_response
from bitinglip.api.paging import check_query
from bitinglip.api.services import services_of
from bitinglip.errors import InsufficientScope
from bitinglip.wire.errors import timestamp

router = APIRouter(prefix="/api/v1/limits", tags=["keys"])

_QUERY = {
    "parameters": [
        {
            "name": "key_id",
            "in": "query",
            "schema": {"type": "string"},
            "description": "another key than the one that asks; for admins",
        }
    ]
}


@router.get("", openapi_extra=_QUERY)
@requires_scope(ANY_KEY)
async def get_limits(request: Request) -> Response:
    """Show the limits of the caller's key and what is left; an admin may ask for any key."""
    check_query(request, "key_id")
    services, caller = services_of(request), caller_of(request)
    key_id, tier = caller.key_id, caller.tier
    wanted = request.query_params.get("key_id")
    if wanted is not None and wanted != key_id:
        if not caller.may(Scope.ADMIN):
            raise InsufficientScope("Only an admin sees another key's limits.", param="key_id")
        record = services.keys.get(wanted)
        key_id, tier = record.id, record.tier
    admission = services.admission
    if services.shared_counts is not None:
        await services.shared_counts.quotas.refresh(key_id)
    policy, readings, used = await admission.read(key_id, tier, LimitClass.INFERENCE)
    tokens, tokens_left = services.token_rates.limit(key_id), services.token_rates.read(key_id)
    other, other_readings, _ = await admission.read(key_id, tier, LimitClass.LIGHT)
    rates = [*_rates(policy, readings), *_rates(other, other_readings)]
    if tokens is not None and tokens_left is not None:
        rates.append(_rate(tokens, tokens_left))
    for route in services.settings.limits.endpoints:
        of_route, left, _ = await admission.read(key_id, tier, LimitClass.INFERENCE, route)
        own = zip(of_route.rates, left, strict=True)
        rates += [
            {**_rate(limit, reading), "route": route}
            for limit, reading in own
            if limit.name.startswith("route-")
        ]
    return json_response(
        {
            "key_id": key_id,
            "tier": tier,
            "rates": rates,
            "concurrent": {"limit": policy.places, "used": used},
            "quotas": [_quota(state) for state in services.meter.read(key_id)],
        }
    )


def _rates(policy: Policy, readings: tuple[Reading, ...]) -> list[dict[str, Any]]:
    return [_rate(*each) for each in zip(policy.rates, readings, strict=True)]


def _rate(limit: Limit, reading: Reading) -> dict[str, Any]:
    return {
        "name": limit.name,
        "route": None,
        "limit": limit.rate.quota,
        "window_seconds": limit.rate.window // SECOND,
        "burst": limit.rate.burst,
        "remaining": reading.remaining,
        "reset_seconds": reading.reset / SECOND,
    }


def _quota(state: QuotaState) -> dict[str, Any]:
    quota, used, reserved, ends = state
    return {
        "name": quota.name,
        "period": quota.period,
        "unit": NAMES[quota.unit],
        "limit": shown_unit(quota.unit, quota.limit),
        "used": shown_unit(quota.unit, used),
        "reserved": shown_unit(quota.unit, reserved),
        "remaining": shown_unit(quota.unit, max(0, quota.limit - used - reserved)),
        "resets_at": timestamp(datetime.fromtimestamp(ends, UTC)),
        "reset_seconds": max(0.0, ends - time.time()),
    }
