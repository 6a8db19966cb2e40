"""A client of asynchronous tasks: begins them, looks at them, waits for their status."""

from typing import Any

import httpx

from tests.support.http_client import NATIVE
from tests.support.server import Server
from tests.support.wait import eventually

ECHO = {"model": "demo-echo", "prompt": "one two three", "max_tokens": 5}
SLOW = {"model": "demo-echo", "prompt": "!slow a", "max_tokens": 1000}
TASKS = "/api/v1/tasks"
#: Options of a server whose model runs one job at a time.
ONE_AT_A_TIME = (
    "--set",
    "models.demo-echo.fake.faults=true",
    "--set",
    "models.demo-echo.fake.batch_size=1",
)


def begin(client: httpx.Client, body: dict[str, Any]) -> str:
    """Begin a task; return its id."""
    answer = client.post(NATIVE, json={**body, "async": True})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def task(client: httpx.Client, task_id: str) -> dict[str, Any]:
    answer = client.get(f"{TASKS}/{task_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def await_status(client: httpx.Client, task_id: str, status: str) -> dict[str, Any]:
    eventually(lambda: task(client, task_id)["status"] == status)
    return task(client, task_id)


def new_client(server: Server, scopes: list[str]) -> httpx.Client:
    """Return a client with a new key of these scopes."""
    with server.client() as admin:
        key = admin.post("/api/v1/keys", json={"name": "someone", "scopes": scopes}).json()["key"]
    return server.client(headers={"X-API-Key": key})
