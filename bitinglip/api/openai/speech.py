"""Speech, as the official client asks for it."""

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
from bitinglip.wire.speech.openai import SpeechRequest
from bitinglip.wire.speech.openai_view import SpeechView

router = APIRouter(prefix="/v1/audio", tags=["openai"])


@router.post("/speech", openapi_extra=json_body(SpeechRequest))
@requires_scope(Scope.AUDIO)
async def speak(request: Request) -> Response:
    """A text as sound."""
    services = services_of(request)
    body = await read_body(request, SpeechRequest)
    find_model_of(services, body.model, "speech")
    view = partial(
        SpeechView,
        request_id=request_id_of(request),
        files=services.files,
        events=body.stream_format == "sse",
    )
    return JobResponse(services.dispatcher, body.to_job(job_context(request, body.model)), view)
