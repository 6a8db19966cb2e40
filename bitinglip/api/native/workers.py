"""The worker processes, and the state of the whole."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.deps import json_answer, needs, read_page, services_of
from bitinglip.api.documentation import list_query
from bitinglip.wire.admin import worker_info

router = APIRouter(prefix="/api/v1", tags=["cluster"])


@router.get("/workers", openapi_extra=list_query())
@needs(Scope.CLUSTER_READ)
async def list_workers(request: Request) -> Response:
    """All worker processes, the spare one too."""
    page = read_page(request)
    return page.of([worker_info(view) for view in services_of(request).residency.workers()])


@router.post("/workers/{worker_id:path}/restart", status_code=202)
@needs(Scope.CLUSTER_WRITE)
async def restart_worker(request: Request, worker_id: str) -> Response:
    """Replace a worker; what it had not begun to send is run again on the new one."""
    await services_of(request).residency.restart_worker(worker_id)
    return json_answer({"id": worker_id, "state": "restarting"}, 202)


@router.delete("/workers/{worker_id:path}", status_code=204)
@needs(Scope.CLUSTER_WRITE)
async def stop_worker(request: Request, worker_id: str) -> Response:
    """Stop a worker until its model is asked for again; a busy one is refused."""
    await services_of(request).residency.stop_worker(worker_id)
    return Response(status_code=204)


@router.get("/cluster/status")
@needs(Scope.CLUSTER_READ)
async def cluster_status(request: Request) -> Response:
    """Workers, models and queues at this moment."""
    services = services_of(request)
    dispatcher, residency = services.dispatcher, services.residency
    models = [
        {
            "model_id": name,
            "status": residency.status(name),
            "cause": residency.cause(name),
            "queued": dispatcher.depth(name),
        }
        for name in services.store.names()
    ]
    return json_answer(
        {
            "status": "draining" if dispatcher.draining else "running",
            "in_flight": dispatcher.in_flight,
            "queued": dispatcher.queued,
            "models": models,
            "workers": [worker_info(view) for view in residency.workers()],
        }
    )
