"""Shows workers in the API."""

from typing import Any

from bitinglip.scheduling.models.operations import WorkerView
from bitinglip.wire.errors import timestamp
from workers import protocol
from workers.devices.device import node_of


def worker_info(view: WorkerView, *, with_output: bool = False) -> dict[str, Any]:
    """Describe a worker; ``with_output`` adds the last lines it wrote, which may hold paths."""
    beat = view.last_heartbeat
    output = {"stderr": view.stderr} if with_output else {}
    return {
        "id": view.id,
        "pid": view.pid,
        "model": view.model,
        "kind": view.kind,
        "devices": view.devices,
        "node": next(filter(None, map(node_of, view.devices)), None),
        "state": view.state,
        "in_flight": view.in_flight,
        "restarts": view.restarts,
        "memory_bytes": view.memory_bytes,
        "ram_bytes": view.ram_bytes,
        "started_at": timestamp(view.started_at),
        "last_heartbeat": timestamp(beat) if beat else None,
        "cause": view.cause,
        "activity": view.activity,
        "confinement": _confinement(view.confined),
        **output,
    }


def _confinement(confined: protocol.Confined | None) -> dict[str, Any] | None:
    """Tell what a worker gave up, and what it did not, with the reasons."""
    if confined is None:
        return None
    return {"measures": list(confined.measures), "missing": list(confined.missing)}
