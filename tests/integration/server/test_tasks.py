"""Asynchronous tasks on a real server: promised, followed, listed, cancelled, kept."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.http_client import NATIVE
from tests.support.server import Server, running_server
from tests.support.task_client import (
    ECHO,
    ONE_AT_A_TIME,
    SLOW,
    TASKS,
    await_status,
    begin,
    new_client,
    task,
)
from tests.support.wait import eventually


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Prefer": "respond-async"}, {}),
        ({"Prefer": "handling=lenient, Respond-Async; x=1, wait=10"}, {}),
        ({}, {"async": True}),
    ],
)
def test_task_ends_with_its_result(
    server: Server, headers: dict[str, str], body: dict[str, Any]
) -> None:
    with server.client() as client:
        answer = client.post(NATIVE, json={**ECHO, **body}, headers=headers)
        assert answer.status_code == 202
        accepted = answer.json()
        assert answer.headers["location"] == f"{TASKS}/{accepted['task_id']}"
        assert answer.headers["preference-applied"] == "respond-async"
        assert accepted["kind"] == "text"
        assert accepted["result"] is None
        ended = await_status(client, accepted["task_id"], "completed")
        assert ended["result"] == {"text": "one two three one two", "finish_reason": "length"}
        assert ended["usage"]["completion_tokens"] == 5
        assert ended["error"] is None
        assert ended["created_at"] <= ended["completed_at"]
        # What was promised is what a plain request answers with, and the task's own members.
        plain = client.post(NATIVE, json=ECHO).json()
        assert set(ended) == set(plain) | {"kind", "error", "position", "eta"}


def test_task_with_a_stream_is_refused(server: Server) -> None:
    with server.client() as client:
        answer = client.post(NATIVE, json={**ECHO, "async": True, "stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stream"


def test_task_that_fails_says_why(server: Server) -> None:
    with server.client() as client:
        ended = await_status(client, begin(client, {**ECHO, "prompt": "!oom"}), "failed")
    assert ended["error"]["code"] == "OUT_OF_MEMORY"
    assert ended["error"]["type"] == "server_error"
    assert ended["result"] is None


def test_task_that_runs_is_cancelled_by_delete(server: Server) -> None:
    with server.client() as client:
        task_id = begin(client, SLOW)
        await_status(client, task_id, "running")
        answer = client.delete(f"{TASKS}/{task_id}")
        assert answer.status_code == 202
        assert answer.json()["status"] == "cancelled"
        again = client.delete(f"{TASKS}/{task_id}")
        assert (again.status_code, again.json()["status"]) == (202, "cancelled")


def test_cancel_of_a_plain_request_is_a_409(server: Server) -> None:
    answers: list[httpx.Response] = []
    with new_client(server, ["inference:text"]) as client:  # whose tasks are none of other tests

        def ask() -> None:
            answers.append(client.post(NATIVE, json=SLOW))

        asking = threading.Thread(target=ask)
        asking.start()

        def running() -> list[Any]:
            found: list[Any] = client.get(f"{TASKS}?status=running").json()["data"]
            return found

        eventually(running)
        [found] = running()
        cancelled = client.delete(f"{TASKS}/{found['task_id']}")
        assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
        asking.join(30)
        assert answers[0].status_code == 409
        assert answers[0].json()["error"]["code"] == "TASK_CANCELLED"
        assert task(client, found["task_id"])["status"] == "cancelled"


def test_tasks_are_their_owners_and_the_admins(server: Server) -> None:
    with (
        new_client(server, ["inference:text"]) as owner,
        new_client(server, ["inference:text"]) as other,
        new_client(server, ["models:read"]) as reader,
        server.client() as admin,
    ):
        task_id = begin(owner, ECHO)
        await_status(owner, task_id, "completed")
        for method in ("GET", "DELETE"):
            answer = other.request(method, f"{TASKS}/{task_id}")
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "TASK_NOT_FOUND"
        assert other.get(TASKS).json()["total"] == 0
        assert reader.get(TASKS).json()["error"]["code"] == "INSUFFICIENT_SCOPE"
        assert task(admin, task_id)["status"] == "completed"
        ids = [each["task_id"] for each in admin.get(f"{TASKS}?limit=1000").json()["data"]]
        assert task_id in ids
        assert len(ids) == len(set(ids))


def test_task_list_is_cut_into_pages_and_filtered(server: Server) -> None:
    with new_client(server, ["inference:text"]) as client:
        made = []
        for n in range(6):  # every other one is plain, and is in memory only
            if n % 2:
                made.append(client.post(NATIVE, json=ECHO).json()["task_id"])
            else:
                made.append(begin(client, ECHO))
                await_status(client, made[-1], "completed")
        pages = [client.get(f"{TASKS}?limit=2&offset={n}").json() for n in (0, 2, 4, 6)]
        assert {page["total"] for page in pages} == {6}
        listed = [each["task_id"] for page in pages for each in page["data"]]
        assert listed == made[::-1]
        assert not any("result" in each for page in pages for each in page["data"])
        assert all(task(client, each)["result"]["text"] for each in made)
        assert client.get(f"{TASKS}?status=failed").json()["total"] == 0
        assert client.get(f"{TASKS}?status=completed&model=demo-echo").json()["total"] == 6
        assert client.get(f"{TASKS}?model=demo-text").json()["total"] == 0
        wrong = client.get(f"{TASKS}?status=done")
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "status")


def test_task_that_waits_says_its_position_and_can_be_cancelled(tmp_path: Path) -> None:
    full = (*ONE_AT_A_TIME, "--set", "queue.max_waiting=2")
    with running_server(tmp_path / "home", *full) as server, server.client() as client:
        running = begin(client, SLOW)
        await_status(client, running, "running")
        waiting = [begin(client, SLOW), begin(client, SLOW)]
        assert task(client, waiting[1])["status"] == "queued"
        assert task(client, waiting[1])["position"] == 2
        refused = client.post(NATIVE, json={**SLOW, "async": True})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "QUEUE_FULL"
        assert client.get(TASKS).json()["total"] == 3
        assert client.delete(f"{TASKS}/{waiting[0]}").json()["status"] == "cancelled"
        assert task(client, waiting[1])["position"] in (1, 2)
        assert client.delete(f"{TASKS}/{running}").json()["status"] == "cancelled"
        await_status(client, waiting[1], "running")
        client.delete(f"{TASKS}/{waiting[1]}")
        eventually(server.idle)


def test_task_that_ended_is_gone_after_its_retention(tmp_path: Path) -> None:
    brief = ("--set", "tasks.retention=1")
    with running_server(tmp_path / "home", *brief) as server, server.client() as client:
        task_id = begin(client, ECHO)
        plain = client.post(NATIVE, json=ECHO).json()["task_id"]
        for each in (task_id, plain):
            eventually(lambda each=each: client.get(f"{TASKS}/{each}").status_code == 404)
        assert client.get(TASKS).json() == {"data": [], "total": 0, "limit": 50, "offset": 0}
