"""These tables describe successful responses for /openapi.json: media types, schemas of JSON.

Schemas name what is always there; responses may hold more.
"""

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_ANY: Schema = {}
_BINARY: Schema = {"type": "string", "format": "binary"}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _word(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _json(schema: Schema, *, stream: bool = False) -> dict[str, Any]:
    return {"application/json": {"schema": schema}, **(_EVENTS if stream else {})}


def _files(*media_types: str) -> dict[str, Any]:
    return {each: {"schema": _BINARY} for each in media_types}


_EVENTS: dict[str, Any] = {"text/event-stream": {"schema": _TEXT}}
_PLAIN: dict[str, Any] = {"text/plain": {"schema": _TEXT}}
_SOUNDS = _files("audio/mpeg", "audio/ogg", "audio/aac", "audio/flac", "audio/wav", "audio/pcm")
_PICTURES = _files("image/png", "image/jpeg", "image/webp")

_USAGE = _object(prompt_tokens=_WHOLE, completion_tokens=_WHOLE, total_tokens=_WHOLE)
_FINISH = _word("stop", "length", "tool_calls")
_MESSAGE = _object(role=_word("assistant"), content=_or_null(_TEXT))


def _answer(kind: str, choice: Schema) -> Schema:
    """Return the schema of a text's answer on OpenAI's surface."""
    return _object(
        id=_TEXT,
        object=_word(kind),
        created=_WHOLE,
        model=_TEXT,
        choices=_list(choice),
        usage=_USAGE,
    )


_MODEL = _object(id=_TEXT, object=_word("model"), created=_WHOLE, owned_by=_TEXT)
_INFERENCE = _object(
    task_id=_TEXT,
    status=_word("queued", "loading", "running", "completed", "failed", "cancelled"),
    result=_or_null({"type": "object"}),
    processing_time=_or_null(_NUMBER),
    worker_id=_or_null(_TEXT),
    created_at=_TEXT,
    completed_at=_or_null(_TEXT),
    usage=_or_null({"type": "object"}),
    model=_TEXT,
    queue_time=_NUMBER,
)
_DOWNLOAD = _object(
    id=_TEXT,
    model=_TEXT,
    source=_TEXT,
    repo=_TEXT,
    revision=_or_null(_TEXT),
    priority=_word("low", "normal", "high"),
    state=_word("queued", "running", "completed", "failed", "cancelled"),
    bytes_done=_WHOLE,
    bytes_total=_or_null(_WHOLE),
    files=_list(_object(path=_TEXT, bytes_done=_WHOLE, bytes_total=_WHOLE)),
    error=_or_null(_object(code=_TEXT, message=_TEXT)),
    created_at=_TEXT,
    started_at=_or_null(_TEXT),
    finished_at=_or_null(_TEXT),
)
_PAGE = _object(data=_list({"type": "object"}), total=_WHOLE, limit=_WHOLE, offset=_WHOLE)
_NAMED = _list(_object(id=_TEXT, name=_TEXT))

#: by path, of the methods that answer with a body of this kind
ANSWERS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _json(
        _answer(
            "chat.completion",
            _object(index=_WHOLE, message=_MESSAGE, finish_reason=_FINISH),
        ),
        stream=True,
    ),
    "/v1/completions": _json(
        _answer("text_completion", _object(index=_WHOLE, text=_TEXT, finish_reason=_FINISH)),
        stream=True,
    ),
    "/v1/embeddings": _json(
        _object(
            object=_word("list"),
            data=_list(
                _object(
                    object=_word("embedding"),
                    index=_WHOLE,
                    embedding={"anyOf": [_list(_NUMBER), _TEXT]},
                )
            ),
            model=_TEXT,
            usage=_object(prompt_tokens=_WHOLE, total_tokens=_WHOLE),
        )
    ),
    "/v1/images/generations": _json(
        _object(created=_WHOLE, data=_list({"type": "object"})), stream=True
    ),
    "/v1/images/edits": _json(_object(created=_WHOLE, data=_list({"type": "object"})), stream=True),
    "/v1/audio/speech": {**_SOUNDS, **_EVENTS},
    "/v1/audio/transcriptions": {**_json(_object(text=_TEXT), stream=True), **_PLAIN},
    "/v1/audio/translations": {**_json(_object(text=_TEXT)), **_PLAIN},
    "/v1/audio/models": _json(_object(models=_NAMED)),
    "/v1/audio/voices": _json(_object(voices=_NAMED)),
    "/v1/models": _json(_object(object=_word("list"), data=_list(_MODEL))),
    "/v1/models/{model_id}": _json(_MODEL),
    "/api/v1/inference/text-generation": _json(_INFERENCE, stream=True),
    "/api/v1/inference/image-generation": _json(_INFERENCE, stream=True),
    "/api/v1/inference/text-to-speech": _json(_INFERENCE, stream=True),
    "/api/v1/inference/transcription": _json(_INFERENCE, stream=True),
    "/api/v1/inference/embeddings": _json(_INFERENCE),
    "/api/v1/files/{file_id}": {**_PICTURES, **_SOUNDS},
    "/api/v1/tasks": _json(_PAGE),
    "/api/v1/models": _json(_PAGE),
    "/api/v1/models/gc": _json(
        _object(data=_list({"type": "object"}), bytes=_WHOLE, dry_run={"type": "boolean"})
    ),
    "/api/v1/models/downloads": _json(
        _object(data=_list(_DOWNLOAD), total=_WHOLE, limit=_WHOLE, offset=_WHOLE)
    ),
    "/api/v1/models/downloads/{download_id}": _json(_DOWNLOAD),
    "/api/v1/models/downloads/{download_id}/events": _EVENTS,
    "/metrics": _PLAIN,
}
