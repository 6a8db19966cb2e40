"""Serves text to speech, on the native surface and on OpenAI's."""

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import note_fields, read_body
from bitinglip.api.documentation import json_body
from bitinglip.api.inference.respond import respond, wants_background
from bitinglip.api.job_context import job_context
from bitinglip.api.job_response import JobResponse
from bitinglip.api.lookup import find_model_of
from bitinglip.api.request_context import request_id_of
from bitinglip.api.services import services_of
from bitinglip.wire.speech import native as native_wire
from bitinglip.wire.speech import openai as openai_wire
from bitinglip.wire.speech.openai_view import SpeechView
from model_store.voices import voices_of

native = APIRouter(prefix="/api/v1/inference", tags=["inference"])
openai = APIRouter(prefix="/v1/audio", tags=["openai"])


@native.post("/text-to-speech", openapi_extra=json_body(native_wire.SpeechRequest))
@requires_scope(Scope.AUDIO, LimitClass.INFERENCE)
async def speak(request: Request) -> Response:
    """Say a text, as one answer or sentence by sentence."""
    body = await read_body(request, native_wire.SpeechRequest)
    find_model_of(request, body.model, "speech")
    background = wants_background(request, body)
    job = body.to_job(job_context(request, body.model, body.priority))
    return await respond(request, job, background=background)


@openai.post("/speech", openapi_extra=json_body(openai_wire.SpeechRequest))
@requires_scope(Scope.AUDIO, LimitClass.INFERENCE)
async def create_speech(request: Request) -> Response:
    """Say a text; the answer is the audio itself, whole or streamed."""
    services = services_of(request)
    body = await read_body(request, openai_wire.SpeechRequest)
    manifest = find_model_of(request, body.model, "speech")
    own = services.settings.model(manifest.name)
    elsewhere = bool(own.upstream.url)
    if body.instructions is not None and not elsewhere:
        note_fields(request, ["instructions"])
    voices = None if elsewhere else voices_of(manifest, own.speech.voices)
    job = body.to_job(job_context(request, body.model), voices)
    view = partial(
        SpeechView,
        request_id=request_id_of(request),
        files=services.files,
        events=body.stream_format == "sse",
    )
    return JobResponse(services.dispatcher, services.uploads, job, view)
