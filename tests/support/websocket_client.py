"""A WebSocket client that watches one task and keeps its messages, or how it was refused."""

import contextlib
import json
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

Message = tuple[str, Any]


def open_watch(
    url: str, task_id: str, *, prefix: str = "", query: str = "", **headers: str
) -> ClientConnection:
    """Connect to a task of the server at this http:// address."""
    address = f"ws{url.removeprefix('http')}{prefix}/ws/inference/{task_id}{query}"
    return connect(address, additional_headers=headers, proxy=None, open_timeout=60)


def heard(socket: ClientConnection) -> tuple[list[Message], int]:
    """Return all messages until the server closes, and the code it closed with."""
    messages: list[Message] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            message = json.loads(socket.recv(timeout=60))
            messages.append((message["event"], message["data"]))
    return messages, socket.close_code or 0


def refusal(url: str, task_id: str, **how: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the error object with which a handshake is refused."""
    try:
        with open_watch(url, task_id, **how):
            pass
    except InvalidStatus as refused:
        response = refused.response
        error: dict[str, Any] = json.loads(response.body)["error"]
        assert response.headers["x-request-id"] == error["request_id"]
        return response.status_code, error
    raise AssertionError("the server took the connection")
