"""Watching tasks of a real server over WebSockets."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.support.http_client import NATIVE
from tests.support.server import Server, running_server
from tests.support.sse import events_of
from tests.support.task_client import ECHO, SLOW, TASKS, await_status, begin, new_client, task
from tests.support.wait import eventually
from tests.support.websocket_client import Message, heard, open_watch, refusal


def watched(server: Server, task_id: str, **how: str) -> list[Message]:
    """Everything that a watcher with the admin's key hears; it must end well."""
    with open_watch(server.url, task_id, **how, **server.headers) as socket:
        messages, code = heard(socket)
    assert code == 1000
    return messages


def plain(messages: list[Message]) -> list[Message]:
    """Return a message without the fields that depend on when it was sent."""
    return [each for each in messages if each[0] not in ("queued", "loading")]


def ticket_for(client: httpx.Client, task_id: str) -> str:
    answer = client.post("/api/v1/auth/ws-ticket", json={"task_id": task_id})
    assert answer.status_code == 200, answer.text
    assert answer.json()["expires_in"] == 60
    return str(answer.json()["ticket"])


def test_watchers_early_and_late_get_every_event_once_and_in_order(server: Server) -> None:
    body = {"model": "demo-text", "prompt": "Once upon a time", "max_tokens": 60, "temperature": 0}
    with server.client() as client, ThreadPoolExecutor() as pool:
        streamed = events_of(client.post(NATIVE, json={**body, "stream": True}).text)
        task_id = begin(client, body)
        early = [pool.submit(watched, server, task_id) for _ in range(2)]
        heard_early = [plain(each.result()) for each in early]
        heard_late = plain(watched(server, task_id, prefix="/api/v1"))
        ended = task(client, task_id)
    assert heard_early == [heard_late] * 2
    # The same names and data as the stream of a plain request.
    names = [name for name, _ in plain(streamed)]
    assert [name for name, _ in heard_late] == names
    tokens = [data for name, data in heard_late if name == "token"]
    assert tokens == [data for name, data in streamed if name == "token"]
    assert heard_late[-1][1]["result"] == ended["result"] == streamed[-1][1]["result"]


def test_watchers_of_failed_and_cancelled_tasks_are_ended(server: Server) -> None:
    with server.client() as client:
        failed = watched(server, begin(client, {**ECHO, "prompt": "!oom"}))
        assert failed[-1][0] == "failed"
        assert failed[-1][1]["error"]["code"] == "OUT_OF_MEMORY"
        task_id = begin(client, SLOW)
        await_status(client, task_id, "running")
        with open_watch(server.url, task_id, **server.headers) as socket:
            client.delete(f"{TASKS}/{task_id}")
            messages, code = heard(socket)
        assert code == 1000
        assert messages[-1] == ("cancelled", {"task_id": task_id, "status": "cancelled"})


def test_watcher_that_leaves_or_talks_changes_nothing(server: Server) -> None:
    with server.client() as client:
        task_id = begin(client, {**SLOW, "max_tokens": 3})
        with open_watch(server.url, task_id, **server.headers) as socket:
            socket.send("stop!")
        with open_watch(server.url, task_id, **server.headers) as socket:
            socket.send("x" * 5000)  # more than anybody may say
            assert heard(socket)[1] == 1009
        assert await_status(client, task_id, "completed")["usage"]["completion_tokens"] == 3


def test_watch_of_a_plain_request(server: Server) -> None:
    with server.client() as client:
        task_id = client.post(NATIVE, json=ECHO).json()["task_id"]
    assert [name for name, _ in plain(watched(server, task_id))] == ["started", "completed"]


def test_ticket_is_good_once_for_its_task(server: Server) -> None:
    with (
        new_client(server, ["inference:text"]) as client,
        new_client(server, ["inference:text"]) as other,
    ):
        task_id, second = begin(client, ECHO), begin(client, ECHO)
        stranger = other.post("/api/v1/auth/ws-ticket", json={"task_id": task_id})
        assert stranger.status_code == 404
        query = f"?ticket={ticket_for(client, task_id)}"
        with open_watch(server.url, task_id, query=query) as socket:
            messages, code = heard(socket)
        assert (messages[-1][0], code) == ("completed", 1000)
        assert query.removeprefix("?ticket=") not in server.log.read_text()
        again = refusal(server.url, task_id, query=query)
        assert (again[0], again[1]["code"]) == (401, "INVALID_TOKEN")
        query = f"?ticket={ticket_for(client, task_id)}"
        elsewhere = refusal(server.url, second, query=query)
        assert (elsewhere[0], elsewhere[1]["code"]) == (401, "INVALID_TOKEN")
        both = refusal(
            server.url,
            task_id,
            query=f"?ticket={ticket_for(client, task_id)}",
            **{"X-API-Key": client.headers["x-api-key"]},
        )
        assert both[0] == 400


def test_ticket_dies_with_its_key(server: Server) -> None:
    with server.client() as admin, new_client(server, ["inference:text"]) as client:
        task_id = begin(client, ECHO)
        query = f"?ticket={ticket_for(client, task_id)}"
        await_status(client, task_id, "completed")
        key_id = client.headers["x-api-key"].split("_")[2]
        assert admin.delete(f"/api/v1/keys/{key_id}").status_code == 204
        status, error = refusal(server.url, task_id, query=query)
    assert (status, error["code"]) == (401, "INVALID_TOKEN")


def test_watch_without_the_right_is_refused_at_the_handshake(server: Server) -> None:
    def code(task_id: str, **how: Any) -> tuple[int, str]:
        status, error = refusal(server.url, task_id, **how)
        return status, error["code"]

    with server.client() as client, new_client(server, ["models:read"]) as reader:
        task_id = begin(client, ECHO)
        mine = server.headers
        assert code(task_id) == (401, "INVALID_API_KEY")
        assert code(task_id, Authorization="Bearer nonsense") == (401, "INVALID_API_KEY")
        assert code(task_id, **{"X-API-Key": reader.headers["x-api-key"]})[0] == 403
        assert code("task-none", **mine) == (404, "TASK_NOT_FOUND")
        assert code("a/b", **mine) == (404, "NOT_FOUND")
        assert code(task_id, query="?x=1", **mine) == (400, "UNSUPPORTED_PARAMETER")
        assert code(task_id, query="?token=1", **mine) == (400, "INVALID_REQUEST")
        evil = {"Origin": "https://evil.example"}
        assert code(task_id, **mine, **evil) == (403, "INSUFFICIENT_SCOPE")
        assert watched(server, task_id, Origin=server.url)[-1][0] == "completed"


def test_origin_that_is_allowed_may_watch(tmp_path: Path) -> None:
    allowed = ("--set", 'server.cors_origins=["https://ours.example"]')
    with running_server(tmp_path / "home", *allowed) as server, server.client() as client:
        task_id = begin(client, ECHO)
        assert watched(server, task_id, Origin="https://ours.example")[-1][0] == "completed"
        status, _ = refusal(server.url, task_id, Origin="https://ours.example.evil")
        assert status == 403


def test_watch_of_a_finished_task_after_a_restart_sends_its_end(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_server(home) as server, server.client() as client:
        done = begin(client, ECHO)
        before = await_status(client, done, "completed")
        failed = begin(client, {"model": "demo-echo", "prompt": "x", "max_tokens": 100_000})
        await_status(client, failed, "failed")
    with running_server(home) as server, server.client() as client:
        [(name, data)] = watched(server, done)
        assert name == "completed"
        assert data == {key: before[key] for key in data}
        assert set(data) == set(before) - {"kind", "error", "position", "eta"}
        [(name, data)] = watched(server, failed)
        assert (name, data["error"]["code"]) == ("failed", "CONTEXT_LENGTH_EXCEEDED")
        assert task(client, done) == before
        eventually(server.idle)
