"""Serves the models in the store: list, import, load, unload, fit, remove."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.admin.store_care import with_care
from bitinglip.api.audited import audited, note_change
from bitinglip.api.auth import caller_of, from_this_machine, requires_scope
from bitinglip.api.body import json_response, read_body
from bitinglip.api.documentation import json_body, list_query
from bitinglip.api.lookup import allowed_models, describe, find_model
from bitinglip.api.paging import read_page
from bitinglip.api.services import services_of
from bitinglip.audit.entry import Action, changed
from bitinglip.errors import InsufficientScope, InvalidModel, InvalidRequest, ModelInUse
from bitinglip.scheduling.placement.fit import fit_info
from bitinglip.wire.admin.downloads import downloading_model
from bitinglip.wire.admin.models import ImportModelRequest
from bitinglip.wire.kinds import KINDS
from bitinglip.wire.model_lookup import check_has_base, check_model
from model_store.adapters import adapters_of, check_removable
from model_store.manifest import Manifest

native = APIRouter(prefix="/api/v1/models", tags=["models"])

_FILTERS = {
    "type": tuple(dict.fromkeys(kind.api_type for kind in KINDS.values())),
    "status": ("available", "downloading", "loading", "ready", "error"),
}


@native.get("", openapi_extra=list_query(*_FILTERS))
@requires_scope(Scope.MODELS_READ)
async def list_models(request: Request) -> Response:
    """List the models; ``type`` and ``status`` select some."""
    services = services_of(request)
    page = read_page(request, *_FILTERS)
    wanted = _read_filters(request)
    here = [describe(services, manifest) for manifest in allowed_models(request)]
    models = await with_care(services, here)
    names, may_use = {model["name"] for model in models}, caller_of(request).may_use
    models += [
        downloading_model(download)
        for download in services.downloads.unfinished()
        if download.wanted.name not in names and may_use(download.wanted.name)
    ]
    return page.of(
        [model for model in models if all(model[name] == value for name, value in wanted.items())]
    )


@native.post("/import", status_code=201, openapi_extra=json_body(ImportModelRequest))
@requires_scope(Scope.ADMIN)
@audited(Action.MODEL_IMPORT)
async def import_model(request: Request) -> Response:
    """Import a folder of this machine into the store; only callers on this machine may."""
    services = services_of(request)
    if not from_this_machine(request):
        raise InsufficientScope(
            "Models can be imported on the server's own machine only: bitinglip models import."
        )
    body = await read_body(request, ImportModelRequest)
    folder = Path(body.path)
    if not folder.is_absolute():
        raise InvalidRequest("'path' must be absolute.", param="path")
    check_model(caller_of(request), body.name)
    allowed = body.allow_pickles or services.settings.model(body.name).allow_pickles
    await asyncio.to_thread(
        services.store.import_folder, folder, body.name, allow_pickles=allowed, base=body.base
    )
    manifest = find_model(request, body.name)
    services.operations.arrived(manifest.name)
    after = {**_facts(manifest), "allow_pickles": allowed}
    note_change(request, target=manifest.name, after=after)
    return json_response(describe(services, manifest), 201)


@native.post("/{model_id:path}/load")
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.MODEL_LOAD)
async def load_model(request: Request, model_id: str) -> Response:
    """Load a model; the answer comes when it is ready."""
    services = services_of(request)
    manifest = find_model(request, model_id)
    check_has_base(manifest)
    before = services.operations.status(manifest.name)
    await services.operations.load(manifest.name)
    _note_status(request, manifest.name, before)
    return json_response(describe(services, manifest))


@native.post("/{model_id:path}/unload")
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.MODEL_UNLOAD)
async def unload_model(request: Request, model_id: str) -> Response:
    """Stop a model's workers and free their memory."""
    services = services_of(request)
    manifest = find_model(request, model_id)
    before = services.operations.status(manifest.name)
    await services.operations.unload(manifest.name)
    _note_status(request, manifest.name, before)
    return json_response(describe(services, manifest))


@native.get("/{model_id:path}/fit")
@requires_scope(Scope.MODELS_READ)
async def fit_model(request: Request, model_id: str) -> Response:
    """Tell whether and where a model fits, after which evictions, or with which settings."""
    services = services_of(request)
    manifest = find_model(request, model_id)
    check_has_base(manifest)
    answer = services.operations.fit(manifest)
    return json_response(fit_info(answer, caller_of(request).may_use))


@native.get("/{model_id:path}")
@requires_scope(Scope.MODELS_READ)
async def get_model(request: Request, model_id: str) -> Response:
    """Show one model; its id may hold one slash."""
    services = services_of(request)
    try:
        manifest = find_model(request, model_id)
    except InvalidModel:
        if (download := services.downloads.of_model(model_id)) is None:
            raise
        return json_response(downloading_model(download))
    needs = services.operations.needs(manifest)
    (found,) = await with_care(services, [describe(services, manifest)])
    adapters = adapters_of(manifest.name, services.store.listing.all())
    names = [each.name for each in adapters if caller_of(request).may_use(each.name)]
    return json_response({**found, **needs, "adapters": names})


@native.delete("/{model_id:path}", status_code=204)
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.MODEL_REMOVE)
async def remove_model(request: Request, model_id: str) -> Response:
    """Remove a model from the store. Raises ModelInUse."""
    services = services_of(request)
    manifest = find_model(request, model_id)
    may_see = caller_of(request).may_use
    check_removable(manifest.name, services.store.listing.all(), may_see)
    await services.operations.unload(manifest.name)
    if services.operations.in_use(manifest.name):
        raise ModelInUse("The model was requested again in the meantime.", param="model")
    await asyncio.to_thread(services.store.remove, manifest.name, may_see=may_see)
    services.cache.clear(manifest.name.__eq__)
    note_change(request, target=manifest.name, before=_facts(manifest))
    return Response(status_code=204)


def _facts(manifest: Manifest) -> dict[str, Any]:
    """Return what the audit log tells of a model that came or went."""
    names = ("kind", "source", "revision", "total_bytes")
    return {name: getattr(manifest, name) for name in names}


def _note_status(request: Request, name: str, before: str) -> None:
    after = services_of(request).operations.status(name)
    old, new = changed({"status": before}, {"status": after})
    note_change(request, target=name, before=old, after=new)


def _read_filters(request: Request) -> dict[str, str]:
    wanted = {name: value for name, value in request.query_params.items() if name in _FILTERS}
    for name, value in wanted.items():
        if value not in _FILTERS[name]:
            raise InvalidRequest(
                f"'{name}' must be one of {', '.join(_FILTERS[name])}.", param=name
            )
    return wanted
