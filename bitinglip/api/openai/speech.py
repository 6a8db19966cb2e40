"""Speech, as the official client asks for it."""

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.answering import JobAnswer
from bitinglip.api.deps import needs, read_body, request_id_of, services_of
from bitinglip.api.documentation import json_body
from bitinglip.api.lookup import find_model_of
from bitinglip.api.terms import speech_terms
from bitinglip.wire.speech.openai import SpeechRequest
from bitinglip.wire.speech.openai_view import SpeechView

router = APIRouter(prefix="/v1/audio", tags=["openai"])


@router.post("/speech", openapi_extra=json_body(SpeechRequest))
@needs(Scope.AUDIO)
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
    return JobAnswer(services.dispatcher, body.to_job(speech_terms(request, body.model)), view)
