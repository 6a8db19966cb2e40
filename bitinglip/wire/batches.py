"""Declares files and batches of OpenAI's surface: requests, and how clients see them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field

from bitinglip.db.tables import ClientFile
from bitinglip.settings.sections import span_in_seconds
from bitinglip.wire.body import AllowedValues
from bitinglip.wire.openai_body import OpenAIRequest

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
#: states of a batch that has not ended
OPEN = ("validating", "in_progress", "finalizing", "cancelling")
_MONTH = 30 * 86_400
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


def _number(text: Any) -> Any:
    """Read a number of a form."""
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() else text


class FileFields(OpenAIRequest):
    """Holds the fields of a form that brings a file."""

    purpose: Annotated[str, AllowedValues(("batch",))]
    expires_after_anchor: Annotated[
        Literal["created_at"] | None, Field(alias="expires_after[anchor]")
    ] = None
    expires_after_seconds: Annotated[
        int | None,
        Field(ge=3600, le=_MONTH, alias="expires_after[seconds]"),
        BeforeValidator(_number, json_schema_input_type=int),
    ] = None


class BatchRequest(OpenAIRequest):
    input_file_id: Annotated[str, Field(min_length=1, max_length=64)]
    endpoint: Endpoint
    completion_window: Annotated[
        float,
        Field(ge=1, le=_MONTH, description="24h, or another span: its lines then end as expired"),
        BeforeValidator(span_in_seconds, json_schema_input_type=str),
    ]
    metadata: Metadata | None = None
    output_expires_after: Annotated[Any, AllowedValues((None,))] = None


class Counts(msgspec.Struct):
    """Counts the requests of a batch whose results are on the disk."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class CachedTokens(msgspec.Struct):
    cached_tokens: int = 0


class ReasoningTokens(msgspec.Struct):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Counts the tokens of all results, in the words of ``/v1/responses``."""

    input_tokens: int = 0
    input_tokens_details: CachedTokens = msgspec.field(default_factory=CachedTokens)
    output_tokens: int = 0
    output_tokens_details: ReasoningTokens = msgspec.field(default_factory=ReasoningTokens)
    total_tokens: int = 0

    def add(self, other: "Usage") -> None:
        """Add what another one counts."""
        self.input_tokens += other.input_tokens
        self.input_tokens_details.cached_tokens += other.input_tokens_details.cached_tokens
        self.output_tokens += other.output_tokens
        self.output_tokens_details.reasoning_tokens += other.output_tokens_details.reasoning_tokens
        self.total_tokens += other.total_tokens


class LineError(msgspec.Struct, frozen=True):
    """Says why a line of the input is no request of a batch; lines are counted from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class LineErrors(msgspec.Struct, frozen=True):
    data: list[LineError]
    object: str = "list"


class Batch(msgspec.Struct, kw_only=True):
    """Shows a batch to clients; times in seconds of Unix time."""

    id: str
    object: str = "batch"
    endpoint: Endpoint
    errors: LineErrors | None = None
    input_file_id: str
    completion_window: str
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = msgspec.field(default_factory=Counts)
    usage: Usage = msgspec.field(default_factory=Usage)
    metadata: dict[str, str] | None = None

    @property
    def ended(self) -> bool:
        return self.status not in OPEN


class _Tokens(msgspec.Struct, frozen=True):
    """Holds the usage of one response, on any of the endpoints."""

    prompt_tokens: int = 0
    prompt_tokens_details: CachedTokens | None = None
    completion_tokens: int = 0
    completion_tokens_details: ReasoningTokens | None = None
    input_tokens: int = 0
    input_tokens_details: CachedTokens | None = None
    output_tokens: int = 0
    output_tokens_details: ReasoningTokens | None = None


class _ResultBody(msgspec.Struct, frozen=True):
    usage: _Tokens | None = None


class _ResultResponse(msgspec.Struct, frozen=True):
    body: _ResultBody


class ResultLine(msgspec.Struct, frozen=True):
    """Is a line of a file of results, as far as its batch counts it."""

    custom_id: str
    response: _ResultResponse | None = None

    def usage(self) -> Usage:
        """Return the tokens of this result; none for a request that failed."""
        found = self.response.body.usage if self.response is not None else None
        if found is None:
            return Usage()
        read = found.prompt_tokens + found.input_tokens
        made = found.completion_tokens + found.output_tokens
        return Usage(
            read,
            found.prompt_tokens_details or found.input_tokens_details or CachedTokens(),
            made,
            found.completion_tokens_details or found.output_tokens_details or ReasoningTokens(),
            read + made,
        )


class RequestLine(msgspec.Struct, frozen=True):
    """Is a line of the input file."""

    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


def window_text(seconds: float) -> str:
    """Write a completion window as clients do: ``24h``, or in seconds."""
    return f"{seconds / 3600:g}h" if seconds % 3600 == 0 else f"{seconds:g}s"


def answered_line(
    number: str, custom_id: str, status: int, body: bytes, ignored: Sequence[str] = ()
) -> bytes:
    """Encode the result of a request that was answered, or refused.

    ``ignored``: what the header X-Ignored-Fields would name; it is there only if there are any.
    """
    response = {"status_code": status, "request_id": number, "body": msgspec.Raw(body)}
    if ignored:
        response["ignored_fields"] = list(ignored)
    line = {"id": number, "custom_id": custom_id, "response": response, "error": None}
    return msgspec.json.encode(line) + b"\n"


def unanswered_line(number: str, custom_id: str, code: str, message: str) -> bytes:
    """Encode the result of a request that was not run, as its batch has ended before."""
    error = {"code": code, "message": message}
    line = {"id": number, "custom_id": custom_id, "response": None, "error": error}
    return msgspec.json.encode(line) + b"\n"


def file_object(row: ClientFile) -> dict[str, Any]:
    """Describe a file as OpenAI does."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": int(row.created_at.timestamp()),
        "expires_at": None if row.expires_at is None else int(row.expires_at.timestamp()),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def shown_batch(batch: Batch) -> dict[str, Any]:
    """Describe a batch as OpenAI does."""
    shown: dict[str, Any] = msgspec.to_builtins(batch)
    return shown
