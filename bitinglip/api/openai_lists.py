"""Serves the routes of OpenAI's surface that list models, and the voices of those that speak."""

from functools import wraps

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import (
    Handler,
    authorize_limited,
    declare_scope,
    has_credential,
    requires_scope,
)
from bitinglip.api.body import json_response
from bitinglip.api.lookup import allowed_models, find_model
from bitinglip.api.services import services_of
from bitinglip.wire.openai_lists import audio_models, audio_voices, openai_model
from model_store.manifest import Manifest
from model_store.voices import voices_of

router = APIRouter(prefix="/v1", tags=["openai"])


@router.get("/models")
@requires_scope(Scope.MODELS_READ)
async def list_models(request: Request) -> Response:
    """List all models of the store, as OpenAI's client expects them."""
    models = [openai_model(each, _max_context(request, each)) for each in allowed_models(request)]
    return json_response({"object": "list", "data": models})


@router.get("/models/{model_id:path}")
@requires_scope(Scope.MODELS_READ)
async def get_model(request: Request, model_id: str) -> Response:
    """Show one model; its id may hold one slash."""
    manifest = find_model(request, model_id)
    return json_response(openai_model(manifest, _max_context(request, manifest)))


def _keyless_by_setting(handler: Handler) -> Handler:
    """Let a route be read without a key where the settings say so: Open WebUI sends none."""

    @wraps(handler)
    async def guarded(request: Request) -> Response:
        keyless = services_of(request).settings.openai.public_audio_lists
        if not keyless or has_credential(request):
            await authorize_limited(request, Scope.MODELS_READ, LimitClass.LIGHT)
        return await handler(request)

    return declare_scope(guarded, Scope.MODELS_READ, LimitClass.LIGHT)


@router.get("/audio/models")
@_keyless_by_setting
async def list_audio_models(request: Request) -> Response:
    """List the models that speak, as Open WebUI asks for them."""
    return json_response(audio_models(_speaking(request)))


@router.get("/audio/voices")
@_keyless_by_setting
async def list_audio_voices(request: Request) -> Response:
    """List the voices of all models that speak, as Open WebUI asks for them."""
    names: list[str] = []
    for each in _speaking(request):
        more = services_of(request).settings.model(each.name).speech.voices
        names += [voice["id"] or "" for voice in voices_of(each, more)]
    return json_response(audio_voices(names))


def _speaking(request: Request) -> list[Manifest]:
    """Return the models that speak; those that the caller's key is for, if there is one."""
    known = "bitinglip.caller" in request.scope
    models = allowed_models(request) if known else services_of(request).store.list()
    return [each for each in models if each.kind == "speech"]


def _max_context(request: Request, manifest: Manifest) -> int | None:
    """Return the tokens that a model holds: as it is loaded, else as settings and files say."""
    services = services_of(request)
    ready = services.operations.ready(manifest.name)
    if ready is not None and ready.max_context:
        return ready.max_context
    own = services.settings.model(manifest.name).max_context
    known = [tokens for tokens in (own, manifest.max_context) if tokens]
    return min(known, default=None)
