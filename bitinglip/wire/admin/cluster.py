"""Shows the state of the whole server: devices, reservations, and each model's queue and
replicas."""

from typing import Any

from bitinglip.gateways.membership import GatewayView
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.models.operations import DeviceView, Operations, ReservationView
from bitinglip.settings import Model
from bitinglip.wire.admin.models import copy_info
from bitinglip.wire.errors import timestamp
from workers.devices.device import node_of
from workers.nodes.cluster import NodeView


def device_info(view: DeviceView) -> dict[str, Any]:
    """Describe a device and its memory."""
    return {
        "id": view.id,
        "name": view.name,
        "kind": view.kind,
        "node": node_of(view.id) or None,
        "memory_bytes": view.memory_bytes,
        "used_bytes": view.used_bytes,
        "foreign_bytes": view.foreign_bytes,
        "elsewhere_bytes": view.elsewhere_bytes,
        "reserved_bytes": view.reserved_bytes,
        "free_bytes": view.free_bytes,
        "utilisation": view.utilisation,
        "temperature_c": view.temperature_c,
        "power_w": view.power_w,
        "state": view.state,
        "reason": view.reason,
        "note": view.note,
        "slowed_by": list(view.slowed_by),
        "last_look": view.last_look and timestamp(view.last_look),
        "last_job": view.last_job and timestamp(view.last_job),
    }


def node_info(view: NodeView) -> dict[str, Any]:
    """Describe a machine that workers run on under an agent."""
    return {
        "id": view.name,
        "address": view.address,
        "state": view.state,
        "reason": view.reason,
        "devices": list(view.devices),
        "workers": view.workers,
        "silent_seconds": round(view.silence, 3),
        "model_bytes": view.model_bytes,
    }


def gateway_info(view: GatewayView) -> dict[str, Any]:
    """Describe a server that shares the database."""
    return {
        "id": view.id,
        "own": view.is_own,
        "version": view.version,
        "started_at": timestamp(view.started_at),
        "silent_seconds": round(view.silence, 3),
    }


def device_health(view: DeviceView) -> dict[str, Any]:
    """Describe a device's state as callers of every scope may see it."""
    told = device_info(view)
    return {name: told[name] for name in ("id", "state", "reason", "last_look", "last_job")}


def reservation_info(view: ReservationView) -> dict[str, Any]:
    """Describe the memory that one worker holds on one device."""
    return {
        "worker": view.worker,
        "model": view.model,
        "device": view.device,
        "bytes": view.bytes,
    }


def model_state_info(
    name: str, own: Model, dispatcher: Dispatcher, operations: Operations
) -> dict[str, Any]:
    """Describe a model at work: its queue, its replicas and how its load goes on."""
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
        "copying": copy_info(operations.copying(name)),
        "pinned": own.pin,
        "idle_seconds": operations.idle_seconds(name),
    }
