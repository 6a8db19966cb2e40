"""Refuses requests before any application is called: the contract's error object, and the end."""

from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from bitinglip import errors
from bitinglip.api.errors import headers_of
from bitinglip.api.middleware import SECURITY_HEADERS
from bitinglip.api.request_context import new_request_id
from bitinglip.wire.errors import error_body


def refusal_bytes(
    error: errors.BitingLipError, more_headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """Return a whole response that says why, and that the connection ends."""
    request_id = new_request_id()
    status, body = errors.answer(error).status, error_body(error, request_id)
    headers: dict[str, Any] = {
        "content-type": "application/json",
        "content-length": len(body),
        "connection": "close",
        "x-request-id": request_id,
        **headers_of(error, status),
    }
    lines = [STATUS_LINE[status]]
    lines += [b"%b: %b\r\n" % pair for pair in (*more_headers, *SECURITY_HEADERS)]
    lines += [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
    return b"".join([*lines, b"\r\n", body])
