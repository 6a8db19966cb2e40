"""Serves messages and counts of tokens, on Anthropic's surface."""

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import note_fields, read_body
from bitinglip.api.documentation import json_body
from bitinglip.api.job_context import job_context
from bitinglip.api.job_response import JobResponse
from bitinglip.api.lookup import find_model_of
from bitinglip.api.request_context import context_of, request_id_of
from bitinglip.api.services import services_of
from bitinglip.scheduling.job import Job
from bitinglip.wire.anthropic.messages import CountTokensRequest, MessagesRequest
from bitinglip.wire.anthropic.view import CountView, MessagesView
from bitinglip.wire.text.length import check_length

router = APIRouter(prefix="/v1/messages", tags=["anthropic"])


@router.post("", openapi_extra=json_body(MessagesRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def create_message(request: Request) -> Response:
    """Write the next message of a conversation."""
    body = await read_body(request, MessagesRequest)
    job = await _job(request, body)
    view = partial(MessagesView, request_id=request_id_of(request), thinking=body.shows_thinking)
    services = services_of(request)
    return JobResponse(services.dispatcher, services.uploads, job, view)


@router.post("/count_tokens", openapi_extra=json_body(CountTokensRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def count_tokens(request: Request) -> Response:
    """Count the tokens of a conversation."""
    job = await _job(request, await read_body(request, CountTokensRequest))
    services, view = services_of(request), partial(CountView, request_id=request_id_of(request))
    return JobResponse(services.dispatcher, services.uploads, job, view)


async def _job(request: Request, body: MessagesRequest | CountTokensRequest) -> Job:
    """Make the job; the response names its request as Anthropic's clients look for it."""
    manifest = find_model_of(request, body.model, "text")
    context = job_context(request, body.model)
    if unknown := body.unknown_switches(manifest.template_switches):
        note_fields(request, unknown)
    job = body.to_job(context)
    check_length(job, manifest, context.model_settings.max_context)
    job = await services_of(request).pictures.stored(job, manifest)
    request_context = context_of(request.scope)
    request_context.notices += ((b"request-id", request_context.request_id.encode()),)
    return job
