"""Serves image generation and editing, on the native surface and on OpenAI's."""

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.links import Links
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import input_memory, read_body
from bitinglip.api.documentation import form_body, json_body
from bitinglip.api.forms import read_form
from bitinglip.api.inference.respond import respond, wants_background
from bitinglip.api.job_context import job_context
from bitinglip.api.job_response import JobResponse
from bitinglip.api.lookup import find_model_of
from bitinglip.api.proxies import public_url
from bitinglip.api.request_context import request_id_of
from bitinglip.api.services import services_of
from bitinglip.api.uploads import Upload, decode_image, inspect_image, store_uploads
from bitinglip.errors import InvalidRequest, UnsupportedParameter
from bitinglip.results.files import PREFIX
from bitinglip.scheduling.job import Job
from bitinglip.settings import ImageLimits
from bitinglip.wire.image.job import SIDE_MULTIPLE
from bitinglip.wire.image.native import ImageGenerationRequest
from bitinglip.wire.image.openai import ImageEditRequest, ImagesRequest
from bitinglip.wire.image.openai_view import ImagesView

native = APIRouter(prefix="/api/v1/inference", tags=["inference"])
openai = APIRouter(prefix="/v1/images", tags=["openai"])


@native.post("/image-generation", openapi_extra=json_body(ImageGenerationRequest))
@requires_scope(Scope.IMAGE, LimitClass.INFERENCE)
async def generate_images(request: Request) -> Response:
    """Make images, as one answer or as a stream of events."""
    services = services_of(request)
    body = await read_body(request, ImageGenerationRequest)
    manifest = find_model_of(request, body.model, "image")
    background = wants_background(request, body)
    side = manifest.image_side
    job = body.to_job(job_context(request, body.model, body.priority, image_side=side))
    if texts := body.uploads():
        held = sum(map(len, texts.values()))
        with input_memory(request) as grow:
            grow(held)
            uploads = {name: await decode_image(text, name) for name, text in texts.items()}
            files = {name: each.data for name, each in uploads.items()}
            await store_uploads(services, job, files, held=held)
    return await respond(request, job, background=background)


@openai.post("/generations", openapi_extra=json_body(ImagesRequest))
@requires_scope(Scope.IMAGE, LimitClass.INFERENCE)
async def create_images(request: Request) -> Response:
    """Make images from a prompt."""
    body = await read_body(request, ImagesRequest)
    side = find_model_of(request, body.model, "image").image_side
    job = body.to_job(job_context(request, body.model, image_side=side), uploads=set())
    return _respond(request, job, "image_generation", body.partial_images or 0)


@openai.post("/edits", openapi_extra=form_body(ImageEditRequest, "image", "mask"))
@requires_scope(Scope.IMAGE, LimitClass.INFERENCE)
async def edit_image(request: Request) -> Response:
    """Make an image from another one; with a mask, change only where the mask is transparent."""
    body, files = await read_form(request, ImageEditRequest, {"image", "image[]", "mask"})
    services = services_of(request)
    find_model_of(request, body.model, "image")
    images = files.get("image", []) + files.get("image[]", [])
    if len(images) != 1:
        if images:
            raise UnsupportedParameter("'image' may be one picture only.", param="image")
        raise InvalidRequest("'image' is missing.", param="image")
    uploads = {"image": await inspect_image(images[0], "image")}
    if "mask" in files:
        uploads["mask"] = await inspect_image(files["mask"][0], "mask")
    context = job_context(request, body.model)
    size = _size_of(uploads["image"], context.limits.images)
    job = body.to_job(context, uploads=set(uploads), size=size, strength=body.strength)
    await store_uploads(services, job, {name: each.data for name, each in uploads.items()})
    return _respond(request, job, "image_edit", body.partial_images or 0)


def _size_of(upload: Upload, limits: ImageLimits) -> tuple[int, int]:
    """Scale the picture's own size into the limits; its proportions stay."""
    scale = min(1.0, limits.max_side / max(upload.width, upload.height))

    def side(pixels: int) -> int:
        whole = int(pixels * scale) // SIDE_MULTIPLE * SIDE_MULTIPLE
        return max(limits.min_side, whole)

    return side(upload.width), side(upload.height)


def _link(server: str, links: Links, file_id: str) -> str:
    """Return the URL of a file, which a browser can open for a while."""
    return f"{server}{PREFIX}{file_id}{links.query(file_id)}"


def _respond(request: Request, job: Job, kind: str, partial_images: int) -> Response:
    services = services_of(request)
    view = partial(
        ImagesView,
        request_id=request_id_of(request),
        files=services.files,
        kind=kind,
        address=partial(_link, public_url(request), services.links),
        partial=partial_images,
    )
    return JobResponse(services.dispatcher, services.uploads, job, view)
