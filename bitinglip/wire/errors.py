"""Every surface shows errors as the same object (the contract, section 3.4)."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from bitinglip import errors

#: OpenAI's words for codes of ours; others are written in lower case on its surface
_OPENAI_CODES = {
    "INVALID_MODEL": "model_not_found",
    "INVALID_API_KEY": "invalid_api_key",
    "EXPIRED_API_KEY": "invalid_api_key",
    "INVALID_TOKEN": "invalid_api_key",
    "RATE_LIMIT_EXCEEDED": "rate_limit_exceeded",
    "CONCURRENCY_LIMIT_EXCEEDED": "rate_limit_exceeded",
    "QUOTA_EXCEEDED": "insufficient_quota",
    "INVALID_REQUEST": "invalid_value",
    "CONTENT_FILTERED": "content_filter",
}

#: what OpenAI's surface calls a field that an error of a job of some kind names
_OPENAI_FIELDS = {
    ("speech", "text"): "input",
    ("transcription", "task"): "model",  # translation has a route of its own
    ("transcription", "timestamps"): "timestamp_granularities",
}


def name_as_openai(error: errors.BitingLipError, kind: str) -> None:
    """Let an error of a job name the field that OpenAI's surface has for it."""
    if error.param is not None:
        error.param = _OPENAI_FIELDS.get((kind, error.param), error.param)


def error_body(error: errors.BitingLipError, request_id: str, *, openai: bool = False) -> bytes:
    """Encode an error as JSON: ``{"error": {...}}``; ``openai``: with that surface's codes."""
    described = error_object(error, request_id)
    if openai:
        described["code"] = openai_code(described["code"])
    return msgspec.json.encode({"error": described})


def openai_code(code: str) -> str:
    """Return what OpenAI's surface calls a code of ours."""
    return _OPENAI_CODES.get(code, code.lower())


def error_object(error: errors.BitingLipError, request_id: str) -> dict[str, Any]:
    answer = errors.answer(error)
    return {
        "code": answer.code,
        "message": error.message,
        "type": answer.type,
        "param": error.param,
        "details": error.details,
        "request_id": request_id,
        "timestamp": timestamp(datetime.now(UTC)),
    }


def timestamp(moment: datetime) -> str:
    """Format a moment as RFC 3339 in UTC with milliseconds: 2026-11-23T03:24:20.123Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
