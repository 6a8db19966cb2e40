"""Describes what the operators' routes answer, for /openapi.json."""

from bitinglip.api.answer_schemas import (
    ANY_OBJECT,
    EVENTS,
    FLAG,
    MOMENT,
    NUMBER,
    TEXT,
    WHOLE,
    Content,
    Schema,
    json_of,
    list_of,
    object_of,
    or_null,
    page_of,
    word,
)


def _nulls(*names: str, of: Schema) -> dict[str, Schema]:
    """Return properties of one kind, each of which may be null."""
    return {name: or_null(of) for name in names}


_COPYING = or_null(object_of(node=TEXT, bytes=WHOLE, total_bytes=WHOLE))
MODEL_INFO = object_of(
    model_id=TEXT,
    name=TEXT,
    type=or_null(TEXT),  # of a model that is still being downloaded little is known
    description=TEXT,
    size=or_null(TEXT),
    status=word("available", "downloading", "loading", "ready", "error"),
    cause=or_null(TEXT),
    progress=or_null(NUMBER),
    copying=_COPYING,
    replicas=WHOLE,
    capabilities=list_of(TEXT),
    supported_parameters=ANY_OBJECT,
    max_context=or_null(WHOLE),
    bytes=or_null(WHOLE),
    source=or_null(TEXT),
    revision=or_null(TEXT),
)
_KEY_PROPERTIES: dict[str, Schema] = {
    "id": TEXT,
    "name": TEXT,
    "tier": TEXT,
    "scopes": list_of(TEXT),
    "last_four": TEXT,
    "created_at": MOMENT,
    **_nulls("expires_at", "revoked_at", "last_used_at", of=MOMENT),
    **_nulls("models", "ip_ranges", of=list_of(TEXT)),
    "quotas": or_null(ANY_OBJECT),
    "guard": or_null(TEXT),
    **_nulls("rotated_at", "grace_until", "rotate_by", of=MOMENT),
}
_KEY = object_of(**_KEY_PROPERTIES)
_NEW_KEY = object_of(**_KEY_PROPERTIES, key=TEXT)
_AUDIT_ENTRY = object_of(
    entry=WHOLE,
    at=MOMENT,
    actor=TEXT,
    action=TEXT,
    target=TEXT,
    outcome=TEXT,
    address=TEXT,
    request_id=TEXT,
    before=or_null(ANY_OBJECT),
    after=or_null(ANY_OBJECT),
)
_WORKER = object_of(
    id=TEXT,
    pid=or_null(WHOLE),
    model=or_null(TEXT),
    kind=or_null(TEXT),
    devices=list_of(TEXT),
    state=TEXT,
    in_flight=WHOLE,
    restarts=WHOLE,
    memory_bytes=WHOLE,
    started_at=MOMENT,
    last_heartbeat=or_null(MOMENT),
    cause=or_null(TEXT),
)
_DEVICE = object_of(
    id=TEXT,
    name=TEXT,
    kind=TEXT,
    memory_bytes=WHOLE,
    used_bytes=WHOLE,
    foreign_bytes=WHOLE,
    elsewhere_bytes=WHOLE,
    reserved_bytes=WHOLE,
    free_bytes=WHOLE,
    state=TEXT,
    reason=or_null(TEXT),
)
_MODEL_STATE = object_of(
    model_id=TEXT,
    status=TEXT,
    cause=or_null(TEXT),
    queued=WHOLE,
    running=WHOLE,
    replicas=WHOLE,
    ready=WHOLE,
    eta=or_null(NUMBER),
    progress=or_null(NUMBER),
    copying=_COPYING,
    pinned=FLAG,
)
_NODE = object_of(
    id=TEXT,
    address=or_null(TEXT),
    state=TEXT,
    reason=or_null(TEXT),
    devices=list_of(TEXT),
    workers=WHOLE,
    silent_seconds=NUMBER,
    model_bytes=or_null(WHOLE),
)
_GATEWAY = object_of(id=TEXT, own=FLAG, version=TEXT, started_at=MOMENT, silent_seconds=NUMBER)
_UPSTREAM = object_of(
    model=TEXT,
    url=or_null(TEXT),
    state=TEXT,
    reason=or_null(TEXT),
    in_flight=WHOLE,
    again_seconds=NUMBER,
)
_CLUSTER = object_of(
    status=TEXT,
    in_flight=WHOLE,
    queued=WHOLE,
    load=NUMBER,
    devices=list_of(_DEVICE),
    reservations=list_of(object_of(worker=TEXT, model=TEXT, device=TEXT, bytes=WHOLE)),
    models=list_of(_MODEL_STATE),
    nodes=list_of(_NODE),
    gateways=list_of(_GATEWAY),
    upstreams=list_of(_UPSTREAM),
)
_LAST_REQUEST = object_of(
    request_id=TEXT,
    at=MOMENT,
    method=TEXT,
    route=TEXT,
    status=WHOLE,
    **_nulls("key_id", "key_name", "model", "task_id", "kind", "worker", of=TEXT),
    **_nulls("prompt_tokens", "completion_tokens", of=WHOLE),
    asynchronous=or_null(FLAG),
    seconds=object_of(
        **_nulls("queue", "load", "first_token", "work", "overhead", of=NUMBER), total=NUMBER
    ),
)
_FIT = object_of(
    model_id=TEXT,
    fits=FLAG,
    verdict=TEXT,
    message=TEXT,
    needs=or_null(ANY_OBJECT),
    device=or_null(TEXT),
    evict=list_of(TEXT),
    evict_elsewhere_bytes=WHOLE,
    settings=ANY_OBJECT,
    devices=list_of(
        object_of(
            id=TEXT,
            memory_bytes=WHOLE,
            free_bytes=WHOLE,
            idle_bytes=WHOLE,
            idle_elsewhere_bytes=WHOLE,
        )
    ),
    ways_out=list_of(ANY_OBJECT),
)
_LIMITS = object_of(
    key_id=TEXT,
    tier=TEXT,
    rates=list_of(object_of(name=TEXT, limit=WHOLE, window_seconds=WHOLE, remaining=WHOLE)),
    concurrent=object_of(limit=or_null(WHOLE), used=WHOLE),
    quotas=list_of(
        object_of(name=TEXT, period=TEXT, unit=TEXT, limit=NUMBER, used=NUMBER, resets_at=MOMENT)
    ),
)
_USAGE = object_of(
    requests=WHOLE,
    prompt_tokens=WHOLE,
    completion_tokens=WHOLE,
    total_tokens=WHOLE,
    megapixels=NUMBER,
    audio_seconds=NUMBER,
    gpu_seconds=NUMBER,
)
_HEALTH = object_of(
    status=word("healthy", "degraded", "unhealthy"),
    checks={
        "type": "object",
        "additionalProperties": object_of(ok=FLAG, detail=TEXT, latency_ms=NUMBER),
    },
    timestamp=MOMENT,
    version=TEXT,
)
_DOWNLOAD = object_of(
    id=TEXT,
    model=TEXT,
    source=TEXT,
    repo=TEXT,
    revision=or_null(TEXT),
    priority=word("low", "normal", "high"),
    state=word("queued", "running", "completed", "failed", "cancelled"),
    bytes_done=WHOLE,
    bytes_total=or_null(WHOLE),
    files=list_of(object_of(path=TEXT, bytes_done=WHOLE, bytes_total=WHOLE)),
    error=or_null(object_of(code=TEXT, message=TEXT)),
    created_at=MOMENT,
    **_nulls("started_at", "finished_at", of=MOMENT),
)
_CLEANED = object_of(
    data=list_of(object_of(kind=TEXT, name=TEXT, bytes=WHOLE, why=TEXT)),
    bytes=WHOLE,
    dry_run=FLAG,
)
_VERDICT = object_of(
    model=TEXT,
    whole=FLAG,
    differences=list_of(object_of(path=TEXT, what=TEXT, shared_with=list_of(TEXT))),
)
_TOKEN = object_of(access_token=TEXT, token_type=TEXT, expires_in=WHOLE, scopes=list_of(TEXT))
_WORKER_STATE = json_of(object_of(id=TEXT, state=TEXT))
_STATUS = json_of(object_of(status=TEXT))

#: by method and path
ADMIN_ANSWERS: dict[str, Content] = {
    "GET /api/v1/audit": page_of(_AUDIT_ENTRY),
    "GET /api/v1/audit/verify": json_of(
        object_of(valid=FLAG, rows=WHOLE, first_bad=or_null(WHOLE))
    ),
    "POST /api/v1/auth/token": json_of(_TOKEN),
    "POST /api/v1/auth/ws-ticket": json_of(object_of(ticket=TEXT, expires_in=WHOLE)),
    "GET /api/v1/cluster/events": EVENTS,
    "GET /api/v1/cluster/requests": page_of(_LAST_REQUEST),
    "GET /api/v1/cluster/status": json_of(_CLUSTER),
    "POST /api/v1/keys": json_of(_NEW_KEY),
    "GET /api/v1/debug/profile": json_of(ANY_OBJECT),
    "GET /api/v1/keys": page_of(_KEY),
    "GET /api/v1/keys/{key_id}": json_of(_KEY),
    "PATCH /api/v1/keys/{key_id}": json_of(_KEY),
    "POST /api/v1/keys/{key_id}/rotate": json_of(_NEW_KEY),
    "GET /api/v1/limits": json_of(_LIMITS),
    "GET /api/v1/models": page_of(MODEL_INFO),
    "POST /api/v1/models/import": json_of(MODEL_INFO),
    "GET /api/v1/models/{model_id}": json_of(MODEL_INFO),
    "PATCH /api/v1/models/{model_id}": json_of(MODEL_INFO),
    "POST /api/v1/models/{model_id}/verify": json_of({"anyOf": [_VERDICT, _DOWNLOAD]}),
    "POST /api/v1/models/{model_id}/update": json_of(_DOWNLOAD),
    "POST /api/v1/models/gc": json_of(_CLEANED),
    "POST /api/v1/models/download": json_of(_DOWNLOAD),
    "GET /api/v1/models/downloads": page_of(_DOWNLOAD),
    "GET /api/v1/models/downloads/{download_id}": json_of(_DOWNLOAD),
    "GET /api/v1/models/downloads/{download_id}/events": EVENTS,
    "GET /api/v1/models/{model_id}/fit": json_of(_FIT),
    "POST /api/v1/models/{model_id}/load": json_of(MODEL_INFO),
    "POST /api/v1/models/{model_id}/unload": json_of(MODEL_INFO),
    "GET /api/v1/usage": page_of(_USAGE),
    "GET /api/v1/workers": page_of(_WORKER),
    "POST /api/v1/workers/{worker_id}/drain": _WORKER_STATE,
    "POST /api/v1/workers/{worker_id}/restart": _WORKER_STATE,
    "GET /health": json_of(_HEALTH),
    "GET /livez": _STATUS,
    "GET /readyz": _STATUS,
}
