"""Lists successful responses for /openapi.json: media types, schemas of JSON.

Schemas name what is always there; responses may hold more.
"""

from bitinglip.api.answer_schemas import (
    ANY_OBJECT,
    EVENTS,
    FLAG,
    MOMENT,
    NUMBER,
    PLAIN,
    TEXT,
    WHOLE,
    Content,
    Schema,
    files_of,
    json_of,
    list_of,
    object_of,
    openai_list_of,
    or_null,
    page_of,
    word,
)
from bitinglip.api.documented_admin import ADMIN_ANSWERS

_SOUNDS = files_of("audio/mpeg", "audio/ogg", "audio/aac", "audio/flac", "audio/wav", "audio/pcm")
_PICTURES = files_of("image/png", "image/jpeg", "image/webp")

_USAGE = object_of(prompt_tokens=WHOLE, completion_tokens=WHOLE, total_tokens=WHOLE)
_FINISH = word("stop", "length", "tool_calls")
_MESSAGE = object_of(role=word("assistant"), content=or_null(TEXT))


def _answer(kind: str, choice: Schema) -> Schema:
    """Return the schema of a text's answer on OpenAI's surface."""
    return object_of(
        id=TEXT,
        object=word(kind),
        created=WHOLE,
        model=TEXT,
        choices=list_of(choice),
        usage=_USAGE,
    )


_MODEL = object_of(id=TEXT, object=word("model"), created=WHOLE, owned_by=TEXT)
_INFERENCE_PROPERTIES: dict[str, Schema] = {
    "task_id": TEXT,
    "status": word("queued", "loading", "running", "completed", "failed", "cancelled"),
    "processing_time": or_null(NUMBER),
    "worker_id": or_null(TEXT),
    "created_at": MOMENT,
    "completed_at": or_null(MOMENT),
    "usage": or_null(ANY_OBJECT),
    "model": TEXT,
    "queue_time": or_null(NUMBER),
}
_INFERENCE = object_of(**_INFERENCE_PROPERTIES, result=or_null(ANY_OBJECT))
_LISTED_TASK = object_of(**_INFERENCE_PROPERTIES, kind=TEXT, error=or_null(ANY_OBJECT))
_TASK = object_of(
    **_INFERENCE_PROPERTIES, result=or_null(ANY_OBJECT), kind=TEXT, error=or_null(ANY_OBJECT)
)
_RESPONSE = object_of(
    id=TEXT,
    object=word("response"),
    created_at=WHOLE,
    completed_at=or_null(WHOLE),
    status=word("queued", "in_progress", "completed", "incomplete", "failed", "cancelled"),
    background=FLAG,
    error=or_null(ANY_OBJECT),
    incomplete_details=or_null(ANY_OBJECT),
    model=TEXT,
    output=list_of(object_of(id=TEXT, type=TEXT)),
    usage=or_null(object_of(input_tokens=WHOLE, output_tokens=WHOLE, total_tokens=WHOLE)),
)
_ANTHROPIC_MESSAGE = object_of(
    id=TEXT,
    type=word("message"),
    role=word("assistant"),
    model=TEXT,
    content=list_of(object_of(type=word("text", "thinking", "tool_use"))),
    stop_reason=or_null(TEXT),
    stop_sequence=or_null(TEXT),
    usage=object_of(input_tokens=WHOLE, output_tokens=WHOLE),
)
_RERANKED = object_of(
    id=TEXT,
    model=TEXT,
    results=list_of(object_of(index=WHOLE, relevance_score=NUMBER)),
    usage=object_of(prompt_tokens=WHOLE, total_tokens=WHOLE),
)
_FILE = object_of(
    id=TEXT,
    object=word("file"),
    bytes=WHOLE,
    created_at=WHOLE,
    expires_at=or_null(WHOLE),
    filename=TEXT,
    purpose=TEXT,
    status=TEXT,
)
_BATCH = object_of(
    id=TEXT,
    object=word("batch"),
    endpoint=TEXT,
    errors=or_null(ANY_OBJECT),
    input_file_id=TEXT,
    completion_window=TEXT,
    status=TEXT,
    output_file_id=or_null(TEXT),
    error_file_id=or_null(TEXT),
    created_at=WHOLE,
    expires_at=WHOLE,
    request_counts=object_of(total=WHOLE, completed=WHOLE, failed=WHOLE),
    metadata=or_null(ANY_OBJECT),
)


def _deleted(kind: str) -> Content:
    return json_of(object_of(id=TEXT, object=word(kind), deleted=FLAG))


_NAMED = list_of(object_of(id=TEXT, name=TEXT))

#: by method and path
ANSWERS: dict[str, Content] = {
    "POST /v1/chat/completions": json_of(
        _answer(
            "chat.completion",
            object_of(index=WHOLE, message=_MESSAGE, finish_reason=_FINISH),
        ),
        stream=True,
    ),
    "POST /v1/completions": json_of(
        _answer("text_completion", object_of(index=WHOLE, text=TEXT, finish_reason=_FINISH)),
        stream=True,
    ),
    "POST /v1/embeddings": json_of(
        object_of(
            object=word("list"),
            data=list_of(
                object_of(
                    object=word("embedding"),
                    index=WHOLE,
                    embedding={"anyOf": [list_of(NUMBER), TEXT]},
                )
            ),
            model=TEXT,
            usage=object_of(prompt_tokens=WHOLE, total_tokens=WHOLE),
        )
    ),
    "POST /v1/images/generations": json_of(
        object_of(created=WHOLE, data=list_of(ANY_OBJECT)), stream=True
    ),
    "POST /v1/images/edits": json_of(
        object_of(created=WHOLE, data=list_of(ANY_OBJECT)), stream=True
    ),
    "POST /v1/audio/speech": {**_SOUNDS, **EVENTS},
    "POST /v1/audio/transcriptions": {**json_of(object_of(text=TEXT), stream=True), **PLAIN},
    "POST /v1/audio/translations": {**json_of(object_of(text=TEXT)), **PLAIN},
    "GET /v1/audio/models": json_of(object_of(models=_NAMED)),
    "GET /v1/audio/voices": json_of(object_of(voices=_NAMED)),
    "GET /v1/models": json_of(object_of(object=word("list"), data=list_of(_MODEL))),
    "GET /v1/models/{model_id}": json_of(_MODEL),
    "POST /api/v1/inference/text-generation": json_of(_INFERENCE, stream=True),
    "POST /api/v1/inference/image-generation": json_of(_INFERENCE, stream=True),
    "POST /api/v1/inference/text-to-speech": json_of(_INFERENCE, stream=True),
    "POST /api/v1/inference/transcription": json_of(_INFERENCE, stream=True),
    "POST /api/v1/inference/embeddings": json_of(_INFERENCE),
    "GET /api/v1/files/{file_id}": {**_PICTURES, **_SOUNDS},
    "POST /v1/rerank": json_of(_RERANKED),
    "POST /v1/messages": json_of(_ANTHROPIC_MESSAGE, stream=True),
    "POST /v1/messages/count_tokens": json_of(object_of(input_tokens=WHOLE)),
    "POST /v1/responses": json_of(_RESPONSE, stream=True),
    "POST /v1/responses/input_tokens": json_of(
        object_of(object=word("response.input_tokens"), input_tokens=WHOLE)
    ),
    "GET /v1/responses/{response_id}": json_of(_RESPONSE, stream=True),
    "DELETE /v1/responses/{response_id}": _deleted("response"),
    "POST /v1/responses/{response_id}/cancel": json_of(_RESPONSE),
    "GET /v1/responses/{response_id}/input_items": openai_list_of(object_of(id=TEXT, type=TEXT)),
    "GET /v1/files": openai_list_of(_FILE),
    "POST /v1/files": json_of(_FILE),
    "GET /v1/files/{file_id}": json_of(_FILE),
    "DELETE /v1/files/{file_id}": _deleted("file"),
    "GET /v1/files/{file_id}/content": files_of("application/jsonl"),
    "GET /v1/batches": openai_list_of(_BATCH),
    "POST /v1/batches": json_of(_BATCH),
    "GET /v1/batches/{batch_id}": json_of(_BATCH),
    "POST /v1/batches/{batch_id}/cancel": json_of(_BATCH),
    "GET /api/v1/tasks": page_of(_LISTED_TASK),
    "GET /api/v1/tasks/{task_id}": json_of(_TASK),
    "DELETE /api/v1/tasks/{task_id}": json_of(_TASK),
    "GET /metrics": PLAIN,
    **ADMIN_ANSWERS,
}
