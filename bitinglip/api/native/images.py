"""Image generation."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.deps import needs, read_body, services_of
from bitinglip.api.documentation import json_body
from bitinglip.api.lookup import find_model_of
from bitinglip.api.native.inference import respond, runs_behind
from bitinglip.api.terms import image_terms
from bitinglip.api.uploads import decoded, received
from bitinglip.wire.image.native import ImageGenerationRequest

router = APIRouter(prefix="/api/v1", tags=["inference"])


@router.post("/inference/image-generation", openapi_extra=json_body(ImageGenerationRequest))
@needs(Scope.IMAGE)
async def generate_images(request: Request) -> Response:
    """Make images, as one answer or as a stream of events."""
    services = services_of(request)
    body = await read_body(request, ImageGenerationRequest)
    find_model_of(services, body.model, "image")
    background = runs_behind(request, body)
    job = body.to_job(image_terms(request, body.model, body.priority))
    uploads = {name: await decoded(text, name) for name, text in body.uploads().items()}
    await received(services, job, uploads)
    return await respond(request, job, background=background)
