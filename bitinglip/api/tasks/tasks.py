"""Serves the routes of asynchronous tasks."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import caller_of, requires_inference_scope
from bitinglip.api.body import json_response
from bitinglip.api.documentation import list_query
from bitinglip.api.guarding import checked_job
from bitinglip.api.lookup import find_task, with_files
from bitinglip.api.paging import read_page
from bitinglip.api.request_context import context_of, request_id_of
from bitinglip.api.services import services_of
from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job
from bitinglip.tasks.store import Filter, Task
from bitinglip.wire.kinds import KINDS
from bitinglip.wire.response import listed_task, task_info

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"])

_STATUSES = ("queued", "loading", "running", "completed", "failed", "cancelled")
_FILTERS = ("status", "model")


@router.get("", openapi_extra=list_query(*_FILTERS))
@requires_inference_scope
async def list_tasks(request: Request) -> Response:
    """List the caller's tasks, the newest first, without their results; an admin sees all."""
    page = read_page(request, *_FILTERS)
    caller = caller_of(request)
    wanted = Filter(
        kinds=[name for name, kind in KINDS.items() if caller.may(kind.scope)],
        key_id=None if caller.may(Scope.ADMIN) else caller.key_id,
        status=_wanted_status(request),
        model=request.query_params.get("model"),
        models=_models_of(request),
    )
    tasks, total = await services_of(request).tasks.list(
        wanted, limit=page.limit, offset=page.offset
    )
    return page.part([listed_task(task, request_id_of(request)) for task in tasks], total)


@router.get("/{task_id}")
@requires_inference_scope
async def get_task(request: Request, task_id: str) -> Response:
    """Show one task: its state, and its result or error once it has ended."""
    task = await find_task(request, caller_of(request), task_id)
    task = await with_files(services_of(request), task)
    return json_response(task_info(task, request_id_of(request)))


@router.delete("/{task_id}", status_code=202)
@requires_inference_scope
async def cancel_task(request: Request, task_id: str) -> Response:
    """Cancel a task; one that has ended stays as it is."""
    await find_task(request, caller_of(request), task_id)
    task = await services_of(request).tasks.cancel(task_id)
    return json_response(task_info(task, request_id_of(request)), 202)


async def accept_as_task(request: Request, job: Job) -> Response:
    """Accept a job as an asynchronous task; the response names its address."""
    context = context_of(request.scope)
    context.job = (job.model, None)
    if job.guard is not None:
        job = await checked_job(request.scope, job)
    task: Task = await services_of(request).tasks.accept(job)
    context.job = (job.model, job.id)
    answer = json_response(task_info(task, request_id_of(request)), 202)
    answer.headers["location"] = f"{request.scope['root_path']}{router.prefix}/{task.id}"
    answer.headers["preference-applied"] = "respond-async"
    return answer


def wants_async(request: Request) -> bool:
    """Return whether a Prefer header holds ``respond-async``, alone or among others."""
    if b"prefer" not in context_of(request.scope).fields:
        return False
    given = ",".join(request.headers.getlist("prefer")).split(",")
    return any(each.partition(";")[0].strip().lower() == "respond-async" for each in given)


def _models_of(request: Request) -> list[str] | None:
    """Return the models that a narrowed key is for; None for a key that is not narrowed."""
    caller = caller_of(request)
    if caller.models is None:
        return None
    return [name for name in services_of(request).store.names() if caller.may_use(name)]


def _wanted_status(request: Request) -> str | None:
    status = request.query_params.get("status")
    if status is not None and status not in _STATUSES:
        raise InvalidRequest(f"'status' must be one of {', '.join(_STATUSES)}.", param="status")
    return status
