"""Speech to text."""

import asyncio
import base64
import binascii
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import read_body
from bitinglip.api.documentation import form_body
from bitinglip.api.forms import read_form, single_file
from bitinglip.api.inference.respond import respond, wants_background
from bitinglip.api.job_context import job_context
from bitinglip.api.lookup import find_model_of
from bitinglip.api.services import services_of
from bitinglip.errors import InvalidRequest
from bitinglip.wire.transcription.native import TranscriptionFields, TranscriptionRequest
from workers import protocol

router = APIRouter(prefix="/api/v1", tags=["inference"])


@router.post("/inference/transcription", openapi_extra=form_body(TranscriptionFields, "file"))
@requires_scope(Scope.AUDIO)
async def transcribe(request: Request) -> Response:
    """Write down a sound file: from a form with ``file``, or as JSON with ``audio`` in base64."""
    body, data = await _read(request)
    services = services_of(request)
    find_model_of(services, body.model, "transcription")
    background = wants_background(request, body)
    job = body.to_job(job_context(request, body.model, body.priority), len(data))
    assert isinstance(job.work, protocol.TranscriptionJob)
    await services.files.receive(Path(job.work.path).name, data)
    return await respond(request, job, background=background)


async def _read(request: Request) -> tuple[TranscriptionFields, bytes]:
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        fields, files = await read_form(request, TranscriptionFields, {"file"})
        return fields, single_file(files)
    body = await read_body(request, TranscriptionRequest)
    try:
        data = await asyncio.to_thread(base64.b64decode, body.audio, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("'audio' is not base64.", param="audio") from None
    return body, data
