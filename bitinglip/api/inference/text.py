"""Text generation."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import read_body
from bitinglip.api.documentation import json_body
from bitinglip.api.inference.respond import respond, wants_background
from bitinglip.api.job_context import job_context
from bitinglip.api.lookup import find_model_of
from bitinglip.api.services import services_of
from bitinglip.wire.text.native import TextGenerationRequest

router = APIRouter(prefix="/api/v1", tags=["inference"])


@router.post("/inference/text-generation", openapi_extra=json_body(TextGenerationRequest))
@requires_scope(Scope.TEXT)
async def generate_text(request: Request) -> Response:
    """Generate text, as one answer or as a stream of events."""
    body = await read_body(request, TextGenerationRequest)
    find_model_of(services_of(request), body.model, "text")
    background = wants_background(request, body)
    job = body.to_job(job_context(request, body.model, body.priority))
    return await respond(request, job, background=background)
