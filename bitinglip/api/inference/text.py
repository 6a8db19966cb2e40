"""Text generation."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import caller_of, requires_scope
from bitinglip.api.body import read_body
from bitinglip.api.documentation import json_body
from bitinglip.api.inference.respond import respond, wants_background
from bitinglip.api.lookup import find_model_of
from bitinglip.api.services import services_of
from bitinglip.scheduling.queue.priority import priority_of
from bitinglip.wire.text.native import TextGenerationRequest

router = APIRouter(prefix="/api/v1", tags=["inference"])


@router.post("/inference/text-generation", openapi_extra=json_body(TextGenerationRequest))
@requires_scope(Scope.TEXT)
async def generate_text(request: Request) -> Response:
    """Generate text, as one answer or as a stream of events."""
    services = services_of(request)
    body = await read_body(request, TextGenerationRequest)
    find_model_of(services, body.model, "text")
    background = wants_background(request, body)
    caller = caller_of(request)
    job = body.to_job(
        services.settings.model(body.model),
        key_id=caller.key_id,
        timeout=services.settings.server.request_timeout,
        priority=priority_of(services.settings.limits.tiers, caller.tier, body.priority),
    )
    return await respond(request, job, background=background)
