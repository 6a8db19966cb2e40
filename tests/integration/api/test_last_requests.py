"""The last requests, with the time of each stage, for admins."""

from typing import Any

import httpx
import pytest

from bitinglip.errors import QueueFull
from tests.integration.api.test_dashboard import EVENTS
from tests.support.api_server import Served
from tests.support.http_client import NATIVE, PROMPT, error_of
from tests.support.sse import iter_events
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch

REQUESTS = "/api/v1/cluster/requests"
NAME = {"x-request-id": "ask-me-later"}


def shown(admin: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    """Return what is listed of a request; its row is written once its answer has been sent."""
    found: list[dict[str, Any]] = []

    def listed() -> bool:
        wanted = answer.headers["x-request-id"]
        found[:] = [each for each in rows(admin) if each["request_id"] == wanted]
        return found != []

    eventually(listed)
    return found[0]


def rows(admin: httpx.Client) -> list[dict[str, Any]]:
    answer = admin.get(REQUESTS, params={"limit": 100}).raise_for_status()
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def test_last_requests_tell_stages_tokens_and_key(
    client: httpx.Client, admin: httpx.Client
) -> None:
    answer = client.post(NATIVE, json={**PROMPT, "stream": True}, headers=NAME)
    row = shown(admin, answer)
    assert (row["method"], row["route"], row["status"]) == ("POST", NATIVE, 200)
    assert (row["model"], row["kind"], row["key_name"]) == ("demo", "text", "inference:text")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (1, 2)
    seconds = row["seconds"]
    assert 0 < seconds["first_token"] <= seconds["work"] <= seconds["total"]
    parts = seconds["queue"] + (seconds["load"] or 0) + seconds["work"] + seconds["overhead"]
    assert abs(parts - seconds["total"]) < 1e-4
    assert PROMPT["prompt"] not in admin.get(REQUESTS).text


def test_last_requests_tell_how_long_a_request_waited_for_its_model(
    client: httpx.Client, admin: httpx.Client
) -> None:
    admin.post("/api/v1/models/demo/unload").raise_for_status()
    waited = shown(admin, client.post(NATIVE, json=PROMPT))["seconds"]
    assert waited["load"] > 0
    assert shown(admin, client.post(NATIVE, json=PROMPT))["seconds"]["load"] is None


def test_last_requests_tell_the_stages_of_a_task_and_of_those_that_watch_it(
    client: httpx.Client, admin: httpx.Client, served: Served
) -> None:
    accepted = client.post(NATIVE, json={**PROMPT, "async": True})
    task = accepted.json()["task_id"]
    with open_watch(served.url, task, **served.headers("inference:text")) as watcher:
        heard(watcher)
    made = shown(admin, accepted)
    assert (made["model"], made["task_id"], made["asynchronous"]) == ("demo", task, True)
    assert made["seconds"]["work"] > 0
    assert made["seconds"]["overhead"] == made["seconds"]["total"]

    def watched() -> list[dict[str, Any]]:  # its row is written once the connection has ended
        return [each for each in rows(admin) if each["route"] == "/ws/inference/{task_id}"]

    eventually(lambda: watched() != [])
    [row] = watched()
    assert row["task_id"] == task
    assert row["seconds"]["work"] == made["seconds"]["work"]
    assert row["seconds"]["overhead"] is None


def test_last_requests_tell_the_stages_of_a_response_in_the_background(
    client: httpx.Client, admin: httpx.Client
) -> None:
    body = {"model": "demo", "input": "a", "background": True, "stream": True}
    row = shown(admin, client.post("/v1/responses", json=body))
    assert (row["model"], row["asynchronous"]) == ("demo", True)
    assert row["seconds"]["work"] > 0


def test_last_requests_hold_those_that_were_refused(admin: httpx.Client) -> None:
    refused = httpx.post(str(admin.base_url.join(NATIVE)), json=PROMPT)
    row = shown(admin, refused)
    assert (row["status"], row["key_id"], row["model"]) == (401, None, None)
    assert row["seconds"]["queue"] is None
    assert row["seconds"]["overhead"] == row["seconds"]["total"] > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (NATIVE, PROMPT),
        (NATIVE, {**PROMPT, "async": True}),
        ("/v1/responses", {"model": "demo", "input": "a"}),
        ("/v1/responses", {"model": "demo", "input": "a", "background": True}),
    ],
)
def test_last_requests_have_no_task_of_a_job_that_was_not_accepted(
    client: httpx.Client,
    admin: httpx.Client,
    served: Served,
    path: str,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise QueueFull()

    monkeypatch.setattr(served.services.dispatcher, "open", refuse)
    refused = client.post(path, json=body)
    assert refused.status_code == 503
    row = shown(admin, refused)
    assert (row["model"], row["task_id"]) == ("demo", None)


def test_last_requests_leave_out_what_watchers_ask(admin: httpx.Client, served: Served) -> None:
    admin.get("/health")
    admin.get("/api/v1/cluster/status")
    routes = {each.endpoint for each in served.services.last_requests}
    assert not routes & {"/health", "/api/v1/cluster/status", REQUESTS}


def test_last_requests_are_for_admins_and_told_of_by_the_snapshots(
    admin: httpx.Client, served: Served
) -> None:
    with httpx.Client(base_url=served.url, headers=served.headers("cluster:read")) as reader:
        error_of(reader.get(REQUESTS), 403, "INSUFFICIENT_SCOPE")
        assert _snapshot(reader)["requests_seen"] is None
    assert _snapshot(admin)["requests_seen"] >= 1
    error_of(admin.get(REQUESTS, params={"body": "1"}), 400, "UNSUPPORTED_PARAMETER")
    narrowed = admin.get(REQUESTS, params={"model": "painter"}).json()["data"]
    assert {each["model"] for each in narrowed} <= {"painter"}


def _snapshot(client: httpx.Client) -> dict[str, Any]:
    with client.stream("GET", EVENTS) as stream:
        _, data = next(iter_events(stream.iter_lines()))
    return dict(data)
