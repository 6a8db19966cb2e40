"""Serves the care of the store: verify, repair, update, clean up, pin."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.admin.downloads import accepted, requester_of
from bitinglip.api.audited import audited, note_change
from bitinglip.api.auth import caller_of, requires_scope
from bitinglip.api.body import json_response, read_body, read_optional_body
from bitinglip.api.documentation import json_body
from bitinglip.api.lookup import describe, find_model
from bitinglip.api.services import Services, services_of
from bitinglip.api.store_cleanup import clean_up as remove_unneeded
from bitinglip.api.store_cleanup import plan_cleanup
from bitinglip.audit.entry import Action, changed
from bitinglip.downloads.download import Priority, Wanted
from bitinglip.errors import Conflict, InvalidRequest, ModelInUse
from bitinglip.wire.admin.store_care import (
    ChangeModelRequest,
    CleanUpRequest,
    UpdateRequest,
    VerifyRequest,
    care_info,
    removal_info,
    verdict_info,
)
from model_store.hub.messages import Task
from model_store.manifest import HUB, Manifest
from model_store.names import check_revision
from model_store.store import ModelStore
from model_store.verification import differences

router = APIRouter(prefix="/api/v1/models", tags=["models"])


@router.post("/gc", openapi_extra=json_body(CleanUpRequest, required=False))
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.STORE_CLEAN)
async def clean_up(request: Request) -> Response:
    """Say what may be removed of the store, or remove it: left-over files, blobs that no model
    has, and the models that were not used for longest, if the store holds too much.

    A key for some models removes, and is told of, no others."""
    services, caller = services_of(request), caller_of(request)
    body = await read_optional_body(request, CleanUpRequest)
    most = body.max_bytes
    if most is None:
        most = services.settings.store.max_bytes
    with _alone(services, ""):
        act = plan_cleanup if body.dry_run else remove_unneeded
        found = await act(services, most, caller.may_use)
    if caller.models is not None:  # names of files tell of others' models
        found = [each for each in found if each.kind == "model"]
    gone = [each.name for each in found if each.kind == "model" and not body.dry_run]
    freed = sum(each.bytes for each in found)
    after = {"dry_run": body.dry_run, "max_bytes": most, "bytes": freed, "models": gone}
    note_change(request, target="store", after=after)
    data = [removal_info(each) for each in found]
    return json_response({"data": data, "bytes": freed, "dry_run": body.dry_run})


@router.patch("/{model_id:path}", openapi_extra=json_body(ChangeModelRequest))
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.MODEL_CHANGE)
async def change_model(request: Request, model_id: str) -> Response:
    """Pin a model, so that no clean-up removes it, or write notes on it."""
    services = services_of(request)
    body = await read_body(request, ChangeModelRequest)
    manifest = find_model(request, model_id)
    before = await asyncio.to_thread(care_of, services.store, manifest.name)
    await asyncio.to_thread(
        services.store.set_care, manifest.name, pinned=body.pinned, notes=body.notes
    )
    after = await asyncio.to_thread(care_of, services.store, manifest.name)
    old, new = changed(before, after)
    note_change(request, target=manifest.name, before=old, after=new)
    return json_response({**describe(services, manifest), **after})


@router.post("/{model_id:path}/verify", openapi_extra=json_body(VerifyRequest, required=False))
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.MODEL_VERIFY)
async def verify_model(request: Request, model_id: str) -> Response:
    """Read all files of a model and compare them with what came; the answer takes that long.

    With ``repair`` the answer is a download (202) of what differs.
    """
    services = services_of(request)
    body = await read_optional_body(request, VerifyRequest)
    manifest = find_model(request, model_id)
    if body.repair:
        return await _ask(request, manifest, "repair", manifest.revision, body.priority)
    with _alone(services, manifest.name):
        found = await asyncio.to_thread(differences, services.store, [manifest.name])
    told = verdict_info(manifest.name, found[manifest.name], caller_of(request).may_use)
    note_change(request, target=manifest.name, after={"whole": told["whole"]})
    return json_response(told)


@router.post("/{model_id:path}/update", status_code=202, openapi_extra=json_body(UpdateRequest))
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.MODEL_DOWNLOAD)
async def update_model(request: Request, model_id: str) -> Response:
    """Bring a model up to date, or to another revision: a download, after which the new files
    take the old ones' place in one step. Its ``changes`` name them."""
    body = await read_optional_body(request, UpdateRequest)
    manifest = find_model(request, model_id)
    if body.revision is not None:
        check_revision(body.revision)
    return await _ask(request, manifest, "update", body.revision, body.priority)


async def _ask(
    request: Request, manifest: Manifest, task: Task, revision: str | None, priority: Priority
) -> Response:
    """Ask for a download that changes a model that is here.

    Raises InvalidRequest for one that did not come from the hub, or ModelInUse.
    """
    services = services_of(request)
    if not manifest.source.startswith(HUB):
        raise InvalidRequest(
            f"{manifest.name} did not come from the hub; remove it, and add it again from where "
            "it came.",
            param="model",
        )
    if services.operations.in_use(manifest.name):
        raise ModelInUse("The model is loaded; unload it first.", param="model")
    wanted = Wanted(
        repo=manifest.source.removeprefix(HUB), name=manifest.name, task=task, revision=revision
    )
    download = await services.downloads.ask(wanted, requester_of(request), priority)
    return accepted(request, download)


@contextmanager
def _alone(services: Services, name: str) -> Iterator[None]:
    """Hold off a second work of the same kind, which would read all files once more.

    Raises Conflict.
    """
    if name in services.caring:
        raise Conflict("This is being done already; wait for its answer.")
    services.caring.add(name)
    try:
        yield
    finally:
        services.caring.discard(name)


def care_of(store: ModelStore, name: str) -> dict[str, Any]:
    """Return what operators say of a model, and its use. Reads files."""
    return care_info(store.usage(name), store.care(name))


async def with_care(services: Services, models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to the descriptions of models what is told of each since it came."""
    return await asyncio.to_thread(_with_care, services.store, models)


def _with_care(store: ModelStore, models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = set(store.names())
    return [
        {**each, **care_of(store, each["model_id"])} if each["model_id"] in known else each
        for each in models
    ]
