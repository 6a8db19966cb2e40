"""Models and tasks by the names that requests give."""

from dataclasses import replace
from typing import Any

from starlette.requests import HTTPConnection

from bitinglip.access.keys import Caller
from bitinglip.access.scopes import Scope
from bitinglip.api.services import Services, services_of
from bitinglip.errors import InsufficientScope, InvalidModel, InvalidRequest, TaskNotFound
from bitinglip.tasks.store import Task
from bitinglip.wire.admin import model_info
from bitinglip.wire.kinds import KINDS
from bitinglip.wire.response import inference_response
from model_store.errors import UnknownModel
from model_store.manifest import Manifest


def find_model(services: Services, name: str) -> Manifest:
    """The model of this name. Raises InvalidModel, which lists what there is."""
    try:
        return services.store.get(name)
    except UnknownModel:
        raise InvalidModel(
            param="model",
            details={"model": name[:256], "available_models": list(services.store.names())},
        ) from None


def find_model_of(services: Services, name: str, kind: str) -> Manifest:
    """A model of a kind. Raises InvalidModel, or InvalidRequest for a model of another."""
    manifest = find_model(services, name)
    own = "text" if manifest.engine == "fake" else manifest.kind
    if own != kind:
        raise InvalidRequest(
            f"This is a model for {_purpose(own)}, not for {_purpose(kind)}.",
            param="model",
        )
    return manifest


def _purpose(kind: str) -> str:
    return KINDS[kind].purpose if kind in KINDS else kind


async def find_task(connection: HTTPConnection, caller: Caller, task_id: str) -> Task:
    """A task that the caller may see: TaskNotFound for others' tasks, else InsufficientScope."""
    task = await services_of(connection).tasks.get(task_id)
    if task.key_id != caller.key_id and not caller.may(Scope.ADMIN):
        raise TaskNotFound()
    scope = KINDS[task.kind].scope
    if not caller.may(scope):
        raise InsufficientScope(f"This task needs the scope {scope}.", details={"required": scope})
    return task


async def with_files(services: Services, task: Task) -> Task:
    """The task with the bytes that its answer is to hold, as far as they are still there."""
    answer = task.answer
    if answer is None and task.event_log is not None and task.event_log.final is not None:
        answer = inference_response(task.event_log)
    return task if answer is None else replace(task, answer=await services.files.fill(answer))


def describe(services: Services, manifest: Manifest) -> dict[str, Any]:
    operations, name = services.operations, manifest.name
    return model_info(
        manifest,
        status=operations.status(name),
        cause=operations.cause(name),
        ready=operations.ready(name),
        progress=operations.progress(name),
        replicas=len([each for each in operations.replicas(name) if each.state == "ready"]),
        more_voices=services.settings.model(name).speech.voices,
    )
