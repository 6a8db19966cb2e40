"""Transcription and translation, as the official client asks for them."""

from functools import partial
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.documentation import form_body
from bitinglip.api.forms import read_form, single_file
from bitinglip.api.job_context import job_context
from bitinglip.api.job_response import JobResponse
from bitinglip.api.lookup import find_model_of
from bitinglip.api.request_context import request_id_of
from bitinglip.api.services import services_of
from bitinglip.wire.transcription.openai import TranscriptionRequest, TranslationRequest
from bitinglip.wire.transcription.openai_view import TranscriptionView
from workers import protocol

router = APIRouter(prefix="/v1/audio", tags=["openai"])


@router.post("/transcriptions", openapi_extra=form_body(TranscriptionRequest, "file"))
@requires_scope(Scope.AUDIO)
async def transcribe(request: Request) -> Response:
    """Transcribe an audio file."""
    body, files = await read_form(request, TranscriptionRequest, {"file"})
    granularities = tuple(body.timestamp_granularities or ("segment",))
    return await _answer(request, body, single_file(files), granularities)


@router.post("/translations", openapi_extra=form_body(TranslationRequest, "file"))
@requires_scope(Scope.AUDIO)
async def translate(request: Request) -> Response:
    """Translate the speech of an audio file into English."""
    body, files = await read_form(request, TranslationRequest, {"file"})
    return await _answer(request, body, single_file(files), ("segment",))


async def _answer(
    request: Request,
    body: TranscriptionRequest | TranslationRequest,
    data: bytes,
    granularities: tuple[str, ...],
) -> Response:
    services = services_of(request)
    find_model_of(services, body.model, "transcription")
    job = body.to_job(job_context(request, body.model), len(data))
    assert isinstance(job.work, protocol.TranscriptionJob)
    await services.files.receive(Path(job.work.path).name, data)
    view = partial(
        TranscriptionView,
        request_id=request_id_of(request),
        form=body.response_format,
        granularities=granularities,
    )
    return JobResponse(services.dispatcher, job, view)
