"""Anthropic's surface shows errors in its own shape, with its own words and statuses."""

from typing import Any

import msgspec

from bitinglip import errors

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OVERLOADED = 529
_json = msgspec.json.Encoder()


def anthropic_status(error: errors.BitingLipError) -> int:
    """Return the status of an error; clients of Anthropic's know 529 as: try again later."""
    answer = errors.answer(error)
    return _OVERLOADED if answer.type == "overloaded_error" else answer.status


def anthropic_error(error: errors.BitingLipError, request_id: str) -> bytes:
    """Encode an error as JSON; ``details`` holds our code, the field at fault, and its details."""
    return _json.encode({"type": "error", "error": _described(error), "request_id": request_id})


def _described(error: errors.BitingLipError) -> dict[str, Any]:
    status = anthropic_status(error)
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    details = {"error_code": errors.answer(error).code.lower(), **error.details}
    if error.param is not None:
        details["param"] = error.param
    return {"type": kind, "message": error.message, "details": details}
