"""Requests that tests of the HTTP API send, and what error responses hold."""

from typing import Any

import httpx

NATIVE = "/api/v1/inference/text-generation"
CHAT = "/v1/chat/completions"
PROMPT = {"model": "demo", "prompt": "hi"}
MESSAGES = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
MAX_BODY = 100_000


#: what codes are called on OpenAI's surface, by the contract; others are in lower case there
OPENAI_CODES = {
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


def code_on(path: str, code: str) -> str:
    """Return what a code of our table is called on the surface of this path."""
    return OPENAI_CODES.get(code, code.lower()) if path.startswith("/v1/") else code


def _path_of(response: httpx.Response) -> str:
    """Return the path that was asked for; of a response that was read from a socket "/"."""
    try:
        return response.request.url.path
    except RuntimeError:
        return "/"


def _of_anthropic(response: httpx.Response, code: str) -> dict[str, Any]:
    """Check a refusal in Anthropic's shape; returns its error object, with our details alone."""
    told = response.json()
    assert set(told) == {"type", "error", "request_id"}
    assert told["request_id"] == response.headers["request-id"]
    error: dict[str, Any] = told["error"]
    assert error["details"].pop("error_code") == code.lower()
    return error


def ask(client: httpx.Client, method: str, path: str, **sent: Any) -> httpx.Response:
    """Send a request; of a stream without end, which only its client ends, read the head."""
    with client.stream(method, path, **sent) as response:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.read()
    return response


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check a refusal by our table's code; returns its error object."""
    assert response.status_code == status, response.text
    if _path_of(response).startswith("/v1/messages"):
        return _of_anthropic(response, code)
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code_on(_path_of(response), code)
    assert error["request_id"] == response.headers["x-request-id"]
    assert set(error) == {
        "code",
        "message",
        "type",
        "param",
        "details",
        "request_id",
        "timestamp",
    }
    return error
