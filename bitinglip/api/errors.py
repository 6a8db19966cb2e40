"""Turns every exception into one response: the error object, its status and its headers."""

import math
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from bitinglip import errors
from bitinglip.access.limits.headers import quota_headers
from bitinglip.access.limits.policy import TOKENS
from bitinglip.api.request_context import context_of, route_path
from bitinglip.wire.anthropic.errors import anthropic_error, anthropic_status
from bitinglip.wire.errors import error_body
from bitinglip.wire.parse import param_path
from bitinglip.wire.responses.output import own_param
from model_store.errors import StoreError


def to_error(exception: Exception) -> errors.BitingLipError:
    """Return the error of our table for an exception; InternalError for any unforeseen one."""
    match exception:
        case errors.BitingLipError():
            return exception
        case StoreError():
            return errors.from_code(exception.code, exception.message)
        case HTTPException(status_code=404):
            return errors.NotFound()
        case HTTPException(status_code=405):
            return errors.MethodNotAllowed(details=_allowed(exception))
        case HTTPException(status_code=status) if status < 500:
            return errors.InvalidRequest()
        case RequestValidationError():
            return _invalid_parameter(exception)
        case _:
            return errors.InternalError()


def _allowed(exception: HTTPException) -> dict[str, Any]:
    allow = (exception.headers or {}).get("Allow", "")
    return {"allow": [method.strip() for method in allow.split(",") if method]}


def _invalid_parameter(exception: RequestValidationError) -> errors.BitingLipError:
    param = param_path(exception.errors()[0]["loc"][1:])
    return errors.InvalidRequest(f"'{param}' is not valid.", param=param)


def error_response(scope: Scope, error: errors.BitingLipError) -> Response:
    """Make the response to a request that ended in this error."""
    status, path, request_id = errors.answer(error).status, route_path(scope), _request_id(scope)
    if status == 429:
        _count_refusal(scope, error)
    headers = headers_of(error, status)
    if is_anthropic(path):
        body, status = anthropic_error(error, request_id), anthropic_status(error)
        if not any(name == b"request-id" for name, _ in context_of(scope).notices):
            headers["request-id"] = request_id
    else:
        if path.startswith("/v1/responses"):
            error.param = own_param(error.param)
        body = error_body(error, request_id, openai=path.startswith("/v1/"))
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def _request_id(scope: Scope) -> str:
    return context_of(scope).request_id


def is_anthropic(path: str) -> bool:
    """Return whether errors at this path are shown as Anthropic shows them."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def _count_refusal(scope: Scope, error: errors.BitingLipError) -> None:
    """Count a refusal by a limit; one by a quota or in tokens is charged to no rate of requests.

    It shows only what refused: clients hold other limits against Retry-After.
    """
    context = context_of(scope)
    reason = error.details.get("quota") or (error.details.get("violated_policies") or ["other"])[0]
    if isinstance(error, errors.QuotaExceeded) or reason == TOKENS:
        context.spared = True
        context.limit_headers = tuple(
            each for each in context.limit_headers if each[0] == b"ratelimit-policy"
        )
    if isinstance(error, errors.QuotaExceeded):
        context.token_headers = None
        if reason != "other":
            context.limit_headers = quota_headers(
                context.limit_headers, reason, error.details["limit"], error.retry_after or 0
            )
    if context.services is not None:
        context.services.refusals.count(reason, context.tier)


def headers_of(error: errors.BitingLipError, status: int) -> dict[str, str]:
    """Return the headers that say how to go on after an error."""
    headers: dict[str, str] = {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, errors.MethodNotAllowed) and error.details.get("allow"):
        headers["allow"] = ", ".join(error.details["allow"])
    if isinstance(error, errors.UnsupportedMediaType) and error.details.get("encodings"):
        headers["accept-encoding"] = ", ".join(error.details["encodings"])
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after * 1000))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return headers
