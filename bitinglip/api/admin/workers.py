"""The worker processes, and the state of the whole."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import caller_of, requires_scope
from bitinglip.api.body import json_response
from bitinglip.api.documentation import list_query
from bitinglip.api.paging import read_page
from bitinglip.api.services import Services, services_of
from bitinglip.wire.admin import worker_info
from workers.confinement import Kernel

router = APIRouter(prefix="/api/v1", tags=["cluster"])


@router.get("/workers", openapi_extra=list_query())
@requires_scope(Scope.CLUSTER_READ)
async def list_workers(request: Request) -> Response:
    """All worker processes, the spare one too."""
    page = read_page(request)
    admin = caller_of(request).may(Scope.ADMIN)
    views = services_of(request).operations.workers()
    return page.of([worker_info(view, with_output=admin) for view in views])


@router.post("/workers/{worker_id:path}/restart", status_code=202)
@requires_scope(Scope.CLUSTER_WRITE)
async def restart_worker(request: Request, worker_id: str) -> Response:
    """Replace a worker; what it had not begun to send is run again on the new one."""
    await services_of(request).operations.restart_worker(worker_id)
    return json_response({"id": worker_id, "state": "restarting"}, 202)


@router.post("/workers/{worker_id:path}/drain", status_code=202)
@requires_scope(Scope.CLUSTER_WRITE)
async def drain_worker(request: Request, worker_id: str) -> Response:
    """Give a worker nothing new, and stop it when it has finished what it runs."""
    services_of(request).operations.drain_worker(worker_id)
    return json_response({"id": worker_id, "state": "draining"}, 202)


@router.delete("/workers/{worker_id:path}", status_code=204)
@requires_scope(Scope.CLUSTER_WRITE)
async def stop_worker(request: Request, worker_id: str) -> Response:
    """Stop a worker until its model is asked for again; a busy one is refused."""
    await services_of(request).operations.stop_worker(worker_id)
    return Response(status_code=204)


@router.get("/cluster/status")
@requires_scope(Scope.CLUSTER_READ)
async def cluster_status(request: Request) -> Response:
    """Devices, memory, models, queues and workers at this moment."""
    services = services_of(request)
    dispatcher, operations = services.dispatcher, services.operations
    return json_response(
        {
            "status": "draining" if dispatcher.draining else "running",
            "in_flight": dispatcher.in_flight,
            "queued": dispatcher.queued,
            "load": round(dispatcher.overload.value, 3),
            "devices": operations.devices(),
            "reservations": operations.reservations(),
            "models": [_model(services, name) for name in services.store.names()],
            "workers": [worker_info(view) for view in operations.workers()],
            "confinement": {"mode": services.settings.workers.confine, **asdict(Kernel.find())},
        }
    )


def _model(services: Services, name: str) -> dict[str, Any]:
    dispatcher, operations = services.dispatcher, services.operations
    own = services.settings.model(name)
    return {
        "model_id": name,
        "status": operations.status(name),
        "cause": operations.cause(name),
        "queued": dispatcher.depth(name),
        "running": dispatcher.running(name),
        "replicas": own.replicas,
        "ready": sum(each.state == "ready" for each in operations.replicas(name)),
        "oldest_wait": dispatcher.oldest_wait(name),
        "eta": dispatcher.eta(name),
        "progress": operations.progress(name),
        "pinned": own.pin,
        "idle_seconds": operations.idle_seconds(name),
    }
