"""Embeddings, on the native surface and on OpenAI's."""

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import read_body
from bitinglip.api.documentation import json_body
from bitinglip.api.inference.respond import respond, wants_background
from bitinglip.api.job_context import job_context
from bitinglip.api.job_response import JobResponse
from bitinglip.api.lookup import find_model_of
from bitinglip.api.request_context import request_id_of
from bitinglip.api.services import services_of
from bitinglip.wire.embedding import native as native_wire
from bitinglip.wire.embedding.openai import EmbeddingRequest
from bitinglip.wire.embedding.openai_view import EmbeddingView

native = APIRouter(prefix="/api/v1/inference", tags=["inference"])
openai = APIRouter(prefix="/v1", tags=["openai"])


@native.post("/embeddings", openapi_extra=json_body(native_wire.EmbeddingRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def embed(request: Request) -> Response:
    """Make a vector of each text."""
    body = await read_body(request, native_wire.EmbeddingRequest)
    find_model_of(request, body.model, "embedding")
    background = wants_background(request, body)
    job = body.to_job(job_context(request, body.model, body.priority), background=background)
    return await respond(request, job, background=background)


@openai.post("/embeddings", openapi_extra=json_body(EmbeddingRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def create_embeddings(request: Request) -> Response:
    """Make a vector of each text."""
    services = services_of(request)
    body = await read_body(request, EmbeddingRequest)
    find_model_of(request, body.model, "embedding")
    job = body.to_job(job_context(request, body.model))
    view = partial(
        EmbeddingView,
        request_id=request_id_of(request),
        encoding=body.encoding_format or "float",
    )
    return JobResponse(services.dispatcher, services.uploads, job, view)
