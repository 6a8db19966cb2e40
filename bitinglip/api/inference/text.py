"""Serves text generation, on the native surface and on OpenAI's."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import note_fields, read_body
from bitinglip.api.documentation import json_body
from bitinglip.api.inference.respond import respond, wants_background
from bitinglip.api.job_context import asking, job_context
from bitinglip.api.job_response import JobResponse
from bitinglip.api.lookup import find_model_of
from bitinglip.api.services import services_of
from bitinglip.errors import UnsupportedParameter
from bitinglip.wire.prepared import prepare_text
from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.length import check_length
from bitinglip.wire.text.native import TextGenerationRequest
from bitinglip.wire.text.openai import ChatCompletionRequest

native = APIRouter(prefix="/api/v1/inference", tags=["inference"])
openai = APIRouter(prefix="/v1", tags=["openai"])


@native.post("/text-generation", openapi_extra=json_body(TextGenerationRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def generate_text(request: Request) -> Response:
    """Generate text, as one answer or as a stream of events."""
    body = await read_body(request, TextGenerationRequest)
    manifest = find_model_of(request, body.model, "text")
    background = wants_background(request, body)
    context = job_context(request, body.model, body.priority)
    if unknown := body.unknown_switches(manifest.template_switches):
        raise UnsupportedParameter(
            f"'{unknown[0]}' is not supported for this model: its chat template does not know it.",
            param=unknown[0],
        )
    job = body.to_job(context)
    check_length(job, manifest, context.model_settings.max_context)
    job = await services_of(request).pictures.stored(job, manifest)
    return await respond(request, job, background=background)


@openai.post("/chat/completions", openapi_extra=json_body(ChatCompletionRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def chat_completions(request: Request) -> Response:
    """Write the next turn of a conversation."""
    return await _respond(request, await read_body(request, ChatCompletionRequest))


@openai.post("/completions", openapi_extra=json_body(CompletionRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def completions(request: Request) -> Response:
    """Continue a text."""
    return await _respond(request, await read_body(request, CompletionRequest))


async def _respond(request: Request, body: ChatCompletionRequest | CompletionRequest) -> Response:
    services, prepared = services_of(request), prepare_text(asking(request), body)
    if prepared.ignored:
        note_fields(request, prepared.ignored)
    job = await services.pictures.stored(prepared.job, prepared.manifest)
    return JobResponse(services.dispatcher, services.uploads, job, prepared.view)
