"""Embeddings, on the native surface and on OpenAI's, and reranking beside the latter."""

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
from bitinglip.api.job_context import asking, job_context
from bitinglip.api.job_response import JobResponse
from bitinglip.api.lookup import find_model_of
from bitinglip.api.request_context import request_id_of
from bitinglip.api.services import services_of
from bitinglip.wire.embedding import native as native_wire
from bitinglip.wire.embedding.openai import EmbeddingRequest
from bitinglip.wire.embedding.rerank import RerankRequest, RerankView
from bitinglip.wire.model_lookup import check_embeds
from bitinglip.wire.prepared import prepare_embedding

native = APIRouter(prefix="/api/v1/inference", tags=["inference"])
openai = APIRouter(prefix="/v1", tags=["openai"])


@native.post("/embeddings", openapi_extra=json_body(native_wire.EmbeddingRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def embed(request: Request) -> Response:
    """Make a vector of each text."""
    body = await read_body(request, native_wire.EmbeddingRequest)
    _check_model(request, body.model)
    background = wants_background(request, body)
    job = body.to_job(job_context(request, body.model, body.priority), background=background)
    return await respond(request, job, background=background)


@openai.post("/embeddings", openapi_extra=json_body(EmbeddingRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def create_embeddings(request: Request) -> Response:
    """Make a vector of each text."""
    services = services_of(request)
    body = await read_body(request, EmbeddingRequest)
    prepared = prepare_embedding(asking(request), body)
    return JobResponse(services.dispatcher, services.uploads, prepared.job, prepared.view)


@openai.post("/rerank", openapi_extra=json_body(RerankRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def rerank(request: Request) -> Response:
    """Score how well each document answers a query, and list the best first."""
    services = services_of(request)
    body = await read_body(request, RerankRequest)
    _check_model(request, body.model, scores=True)
    job = body.to_job(job_context(request, body.model))
    view = partial(RerankView, request_id=request_id_of(request), request=body)
    return JobResponse(services.dispatcher, services.uploads, job, view)


def _check_model(request: Request, name: str, *, scores: bool = False) -> None:
    """Raise InvalidRequest for a model that makes no vectors, or no scores."""
    check_embeds(find_model_of(request, name, "embedding"), scores=scores)
