"""Serves transcription and translation of speech, on the native surface and on OpenAI's."""

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import input_memory, media_type_of, read_body
from bitinglip.api.documentation import form_body
from bitinglip.api.forms import FORM, read_form, single_file
from bitinglip.api.inference.respond import respond, wants_background
from bitinglip.api.job_context import job_context
from bitinglip.api.job_response import JobResponse
from bitinglip.api.lookup import find_model_of
from bitinglip.api.request_context import request_id_of
from bitinglip.api.services import services_of
from bitinglip.api.uploads import decode_base64, store_uploads
from bitinglip.results.uploads import ReceivedFile
from bitinglip.wire.transcription import native as native_wire
from bitinglip.wire.transcription.openai import TranscriptionRequest, TranslationRequest
from bitinglip.wire.transcription.openai_view import TranscriptionView

native = APIRouter(prefix="/api/v1/inference", tags=["inference"])
openai = APIRouter(prefix="/v1/audio", tags=["openai"])


@native.post("/transcription", openapi_extra=form_body(native_wire.TranscriptionFields, "file"))
@requires_scope(Scope.AUDIO, LimitClass.INFERENCE)
async def transcribe(request: Request) -> Response:
    """Transcribe an audio file: a form with ``file``, or JSON with ``audio`` in base64."""
    if media_type_of(request) == FORM:
        fields, files = await read_form(request, native_wire.TranscriptionFields, {"file"})
        return await _respond_natively(request, fields, single_file(files))
    body = await read_body(request, native_wire.TranscriptionRequest)
    with input_memory(request) as grow:
        grow(len(body.audio))
        data = await decode_base64(body.audio, "audio")
        return await _respond_natively(request, body, data, held=len(body.audio))


async def _respond_natively(
    request: Request,
    body: native_wire.TranscriptionFields,
    data: bytes | ReceivedFile,
    held: int = 0,
) -> Response:
    services = services_of(request)
    find_model_of(request, body.model, "transcription")
    background = wants_background(request, body)
    size = data.size if isinstance(data, ReceivedFile) else len(data)
    job = body.to_job(job_context(request, body.model, body.priority), size)
    await store_uploads(services, job, {"path": data}, held=held)
    return await respond(request, job, background=background)


@openai.post("/transcriptions", openapi_extra=form_body(TranscriptionRequest, "file"))
@requires_scope(Scope.AUDIO, LimitClass.INFERENCE)
async def create_transcription(request: Request) -> Response:
    """Transcribe an audio file."""
    body, files = await read_form(request, TranscriptionRequest, {"file"})
    granularities = tuple(body.timestamp_granularities or ("segment",))
    return await _respond(request, body, single_file(files), granularities)


@openai.post("/translations", openapi_extra=form_body(TranslationRequest, "file"))
@requires_scope(Scope.AUDIO, LimitClass.INFERENCE)
async def create_translation(request: Request) -> Response:
    """Translate the speech of an audio file into English."""
    body, files = await read_form(request, TranslationRequest, {"file"})
    return await _respond(request, body, single_file(files), ("segment",))


async def _respond(
    request: Request,
    body: TranscriptionRequest | TranslationRequest,
    data: ReceivedFile,
    granularities: tuple[str, ...],
) -> Response:
    services = services_of(request)
    find_model_of(request, body.model, "transcription")
    job = body.to_job(job_context(request, body.model), data.size)
    await store_uploads(services, job, {"path": data})
    view = partial(
        TranscriptionView,
        request_id=request_id_of(request),
        form=body.response_format or "json",
        granularities=granularities,
    )
    return JobResponse(services.dispatcher, services.uploads, job, view)
