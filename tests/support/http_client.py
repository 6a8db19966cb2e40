"""Requests that tests of the HTTP API send, and what error responses hold."""

from typing import Any

import httpx

NATIVE = "/api/v1/inference/text-generation"
CHAT = "/v1/chat/completions"
PROMPT = {"model": "demo", "prompt": "hi"}
MESSAGES = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
MAX_BODY = 100_000


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
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
