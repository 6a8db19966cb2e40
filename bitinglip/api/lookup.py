"""Finds models and tasks by the names in requests."""

from dataclasses import replace
from typing import Any

from starlette.requests import HTTPConnection, Request

from bitinglip.access.keys import Caller
from bitinglip.api.auth import caller_of
from bitinglip.api.services import Services, services_of
from bitinglip.errors import InvalidModel, TaskNotFound
from bitinglip.tasks.store import Task
from bitinglip.wire.admin.models import model_info
from bitinglip.wire.model_lookup import check_model, check_owner, model_named, model_of_kind
from bitinglip.wire.response import inference_response
from model_store.manifest import Manifest


def find_model(request: Request, name: str) -> Manifest:
    """Return the model of this name. Raises as ``model_named`` does."""
    services = services_of(request)
    try:
        return model_named(services.store, caller_of(request), name)
    except InvalidModel as error:
        raise _still_downloading(services, name) or error from None


def allowed_models(request: Request) -> list[Manifest]:
    """Return the models that the caller's key is for."""
    caller = caller_of(request)
    return [each for each in services_of(request).store.list() if caller.may_use(each.name)]


def find_model_of(request: Request, name: str, kind: str) -> Manifest:
    """Return a model of a kind. Raises as ``model_of_kind`` does."""
    services = services_of(request)
    try:
        return model_of_kind(services.store, caller_of(request), name, kind)
    except InvalidModel as error:
        raise _still_downloading(services, name) or error from None


def _still_downloading(services: Services, name: str) -> InvalidModel | None:
    """Return the error that says that a model is on its way, if it is."""
    download = services.downloads.of_model(name)
    if download is None:
        return None
    part = "" if download.fraction is None else f" ({100 * download.fraction:.0f} %)"
    return InvalidModel(
        f"The model is being downloaded{part}; it can be used as soon as that has ended.",
        param="model",
        details={"model": name, "download": download.id, "state": download.state},
    )


async def find_task(connection: HTTPConnection, caller: Caller, task_id: str) -> Task:
    """Return a task of the caller. Raises TaskNotFound, InsufficientScope or ModelNotAllowed."""
    task = await services_of(connection).tasks.get(task_id)
    check_owner(caller, task.key_id, task.kind, TaskNotFound)
    check_model(caller, task.model)
    return task


async def with_files(services: Services, task: Task, *, most: int | None = None) -> Task:
    """Put the bytes of a task's files into its answer; see ``Files.inline_bytes``."""
    answer = task.answer
    if answer is None and task.event_log is not None and task.event_log.final is not None:
        answer = inference_response(task.event_log)
    if answer is None:
        return task
    return replace(task, answer=await services.files.inline_bytes(answer, most))


def describe(services: Services, manifest: Manifest) -> dict[str, Any]:
    operations, name = services.operations, manifest.name
    return model_info(
        manifest,
        status=operations.status(name),
        cause=operations.cause(name),
        ready=operations.ready(name),
        progress=operations.progress(name),
        copying=operations.copying(name),
        replicas=len([each for each in operations.replicas(name) if each.state == "ready"]),
        load_times=operations.load_times(name),
        more_voices=services.settings.model(name).speech.voices,
        why_merged=operations.why_merged(manifest),
    )
