"""Chat and completions, as the official client expects them."""

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import read_body
from bitinglip.api.documentation import json_body
from bitinglip.api.job_context import job_context
from bitinglip.api.job_response import JobResponse
from bitinglip.api.lookup import find_model_of
from bitinglip.api.request_context import request_id_of
from bitinglip.api.services import services_of
from bitinglip.wire.text.openai import ChatCompletionRequest, CompletionRequest
from bitinglip.wire.text.openai_view import ChatView, CompletionView

router = APIRouter(prefix="/v1", tags=["openai"])


@router.post("/chat/completions", openapi_extra=json_body(ChatCompletionRequest))
@requires_scope(Scope.TEXT)
async def chat_completions(request: Request) -> Response:
    """The next turn of a conversation."""
    return _answer(request, await read_body(request, ChatCompletionRequest), ChatView)


@router.post("/completions", openapi_extra=json_body(CompletionRequest))
@requires_scope(Scope.TEXT)
async def completions(request: Request) -> Response:
    """How a text goes on."""
    return _answer(request, await read_body(request, CompletionRequest), CompletionView)


def _answer(
    request: Request,
    body: ChatCompletionRequest | CompletionRequest,
    view: type[ChatView] | type[CompletionView],
) -> Response:
    services = services_of(request)
    find_model_of(services, body.model, "text")
    job = body.to_job(job_context(request, body.model))
    return JobResponse(
        services.dispatcher,
        job,
        partial(view, request_id=request_id_of(request), include_usage=body.include_usage),
    )
