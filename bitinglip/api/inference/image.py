"""Image generation."""

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
from bitinglip.api.uploads import decode_image, store_uploads
from bitinglip.wire.image.native import ImageGenerationRequest

router = APIRouter(prefix="/api/v1", tags=["inference"])


@router.post("/inference/image-generation", openapi_extra=json_body(ImageGenerationRequest))
@requires_scope(Scope.IMAGE)
async def generate_images(request: Request) -> Response:
    """Make images, as one answer or as a stream of events."""
    services = services_of(request)
    body = await read_body(request, ImageGenerationRequest)
    find_model_of(services, body.model, "image")
    background = wants_background(request, body)
    job = body.to_job(job_context(request, body.model, body.priority))
    uploads = {name: await decode_image(text, name) for name, text in body.uploads().items()}
    await store_uploads(services, job, uploads)
    return await respond(request, job, background=background)
