"""Serves the routes of the worker processes."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.audited import audited, note_change
from bitinglip.api.auth import caller_of, requires_scope
from bitinglip.api.body import json_response
from bitinglip.api.documentation import list_query
from bitinglip.api.paging import read_page
from bitinglip.api.services import services_of
from bitinglip.audit.entry import Action
from bitinglip.scheduling.models.operations import WorkerView
from bitinglip.wire.admin.workers import worker_info
from bitinglip.wire.model_lookup import check_model

router = APIRouter(prefix="/api/v1", tags=["cluster"])


@router.get("/workers", openapi_extra=list_query())
@requires_scope(Scope.CLUSTER_READ)
async def list_workers(request: Request) -> Response:
    """List all worker processes, the spare one too."""
    page = read_page(request)
    admin = caller_of(request).may(Scope.ADMIN)
    return page.of([worker_info(view, with_output=admin) for view in _workers(request)])


@router.post("/workers/{worker_id:path}/restart", status_code=202)
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.WORKER_RESTART)
async def restart_worker(request: Request, worker_id: str) -> Response:
    """Replace a worker; its requests without output run again on the new one."""
    _check_worker(request, worker_id)
    await services_of(request).operations.restart_worker(worker_id)
    return json_response({"id": worker_id, "state": "restarting"}, 202)


@router.post("/workers/{worker_id:path}/drain", status_code=202)
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.WORKER_DRAIN)
async def drain_worker(request: Request, worker_id: str) -> Response:
    """Send a worker no new requests, and stop it when it has finished its running ones."""
    _check_worker(request, worker_id)
    services_of(request).operations.drain_worker(worker_id)
    return json_response({"id": worker_id, "state": "draining"}, 202)


@router.delete("/workers/{worker_id:path}", status_code=204)
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.WORKER_STOP)
async def stop_worker(request: Request, worker_id: str) -> Response:
    """Stop a worker until its model is requested again. Raises ModelInUse."""
    _check_worker(request, worker_id)
    await services_of(request).operations.stop_worker(worker_id)
    return Response(status_code=204)


def _workers(request: Request) -> list[WorkerView]:
    """Return the workers of the models that the caller's key is for, and those without one."""
    caller = caller_of(request)
    views = services_of(request).operations.workers()
    return [view for view in views if view.model is None or caller.may_use(view.model)]


def _check_worker(request: Request, worker_id: str) -> None:
    """Raise ModelNotAllowed for a worker of a model that the caller's key is not for."""
    for view in services_of(request).operations.workers():
        if view.id != worker_id:
            continue
        if view.model is not None:
            check_model(caller_of(request), view.model)
        note_change(request, before={"model": view.model, "pid": view.pid, "state": view.state})
