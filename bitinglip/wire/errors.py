"""Every surface shows errors as the same object (the contract, section 3.4)."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from bitinglip import errors


def error_body(error: errors.BitingLipError, request_id: str) -> bytes:
    """Encode an error as JSON: ``{"error": {...}}``."""
    return msgspec.json.encode({"error": error_object(error, request_id)})


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
