"""Shapes of the routes that look at and change the server: models, workers, keys."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Annotated, Any

from pydantic import Field

from bitinglip.access.keys import KeyRecord
from bitinglip.scheduling.models.operations import WorkerView
from bitinglip.wire.body import Body
from bitinglip.wire.errors import timestamp
from bitinglip.wire.kinds import KINDS
from bitinglip.wire.schema import schema_of
from model_store.manifest import Manifest
from model_store.voices import voices_of
from workers import protocol

_NEED_A_MODEL = frozenset({"logprobs", "logit_bias"})
#: what requests of a kind have, and models of these families do not
_NOT_OF = {"bark": {"speed"}, "speecht5": {"speed", "language"}}
_NOT_PARAMETERS = frozenset({"model", "stream", "timeout", "async", "priority"})


class WatchTicketRequest(Body):
    """Which task a ticket is for."""

    task_id: Annotated[str, Field(min_length=1, max_length=128)]


class CreateKeyRequest(Body):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    tier: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    scopes: Annotated[list[str], Field(min_length=1, max_length=32)] | None = None
    expires: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class ImportModelRequest(Body):
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    allow_pickles: bool = False


def model_type(manifest: Manifest) -> str:
    """The design's word for what a model makes: text, image, audio or embedding."""
    kind = _kind(manifest)
    if kind in KINDS:
        return KINDS[kind].api_type
    return "audio" if kind == "vocoder" else kind


def _kind(manifest: Manifest) -> str:
    return "text" if manifest.engine == "fake" else manifest.kind


def model_info(
    manifest: Manifest,
    *,
    status: str,
    cause: str | None,
    ready: protocol.Ready | None,
    progress: float | None,
    replicas: int,
    more_voices: Iterable[str] = (),
) -> dict[str, Any]:
    """The design's ModelInfo, and what is known beside it; of a loaded model what it really has."""
    kind = model_type(manifest)
    voices = voices_of(manifest, more_voices)
    return {
        "model_id": manifest.name,
        "name": manifest.name,
        "type": kind,
        "description": manifest.description,
        "size": human_bytes(manifest.total_bytes),
        "status": status,
        "cause": cause,
        "progress": progress,
        "replicas": replicas,
        "capabilities": list(manifest.capabilities),
        "supported_parameters": supported_parameters(
            _kind(manifest), manifest.engine, manifest.model_type
        ),
        **({"voices": voices} if voices else {}),
        "engine": manifest.engine,
        "architecture": manifest.architecture,
        "max_context": (ready and ready.max_context) or manifest.max_context,
        "dtype": (ready and ready.dtype) or manifest.dtype,
        "device": ready and ready.device,
        "parameters": manifest.parameters,
        "bytes": manifest.total_bytes,
        "source": manifest.source,
        "revision": manifest.revision,
    }


def openai_model(manifest: Manifest) -> dict[str, Any]:
    return {
        "id": manifest.name,
        "object": "model",
        "created": int(manifest.created_at.timestamp()),
        "owned_by": "bitinglip",
    }


@cache
def supported_parameters(kind: str, engine: str, model_type: str | None) -> Mapping[str, Any]:
    """What a request may set: type, bounds and default, from the request's own schema."""
    if kind not in KINDS:
        return {}
    own = KINDS[kind]
    never = _NOT_PARAMETERS | own.inputs | _NOT_OF.get(model_type or "", set())
    if engine == "fake":
        never |= _NEED_A_MODEL
    properties = schema_of(own.request)["properties"]
    return {
        name: {
            **schema.get("anyOf", [schema])[0],
            "default": own.defaults.get(name, schema.get("default")),
        }
        for name, schema in properties.items()
        if name not in never
    }


def human_bytes(count: int) -> str:
    """1.2 GB, as disks and downloads are labelled: powers of ten."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def worker_info(view: WorkerView, *, with_output: bool = False) -> dict[str, Any]:
    """A worker; ``with_output``: also the last lines it wrote, which may hold paths."""
    beat = view.last_heartbeat
    output = {"stderr": view.stderr} if with_output else {}
    return {
        "id": view.id,
        "pid": view.pid,
        "model": view.model,
        "kind": view.kind,
        "devices": view.devices,
        "state": view.state,
        "in_flight": view.in_flight,
        "restarts": view.restarts,
        "memory_bytes": view.memory_bytes,
        "started_at": timestamp(view.started_at),
        "last_heartbeat": timestamp(beat) if beat else None,
        "cause": view.cause,
        "confinement": _confinement(view.confined),
        **output,
    }


def _confinement(confined: protocol.Confined | None) -> dict[str, Any] | None:
    """What a worker gave up, and what it did not, each with the reason."""
    if confined is None:
        return None
    return {"measures": list(confined.measures), "missing": list(confined.missing)}


def key_info(record: KeyRecord) -> dict[str, Any]:
    """A key without its secret."""

    def moment(value: datetime | None) -> str | None:
        return timestamp(value) if value else None

    return {
        "id": record.id,
        "name": record.name,
        "tier": record.tier,
        "scopes": [*record.scopes],
        "last_four": record.last_four,
        "created_at": moment(record.created_at),
        "expires_at": moment(record.expires_at),
        "revoked_at": moment(record.revoked_at),
        "last_used_at": moment(record.last_used_at),
    }
