"""A revoked or expired key ends its streams, connections, and queued, running and kept work."""

import asyncio
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.access.keys import PEPPER, KeyRing
from bitinglip.audit.chain import SEALING
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT, error_of
from tests.support.raw_http import raw_request
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch

WAIT = {**PROMPT, "prompt": "!wait"}
ENDLESS = {**PROMPT, "prompt": "!stall"}  #: it starts, and does not end
STALL = {**ENDLESS, "stream": True}
IN_TIME = 30.0  #: seconds: half of what the work would take; the rule is one


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server that runs two jobs at once and lets others wait."""
    with serve(tmp_path_factory.mktemp("revocation"), slots=2) as served:
        yield served


def admin_of(served: Served) -> httpx.Client:
    return httpx.Client(base_url=served.url, headers=served.headers("admin"), timeout=60)


@pytest.fixture
def admin(narrow: Served) -> Iterator[httpx.Client]:
    with admin_of(narrow) as client:
        yield client
    narrow.wait_idle()


def new_key(admin: httpx.Client, **fields: Any) -> tuple[str, dict[str, str]]:
    made = admin.post("/api/v1/keys", json={"name": "n", **fields}).json()
    return made["id"], {"x-api-key": made["key"]}


def accept(admin: httpx.Client, key: dict[str, str], body: dict[str, Any]) -> str:
    headers = {**key, "prefer": "respond-async"}
    answer = httpx.post(f"{admin.base_url}{NATIVE}", json=body, headers=headers, timeout=60)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def status(admin: httpx.Client, task_id: str) -> str:
    return str(admin.get(f"/api/v1/tasks/{task_id}").json()["status"])


def test_revocation_ends_a_stream(narrow: Served, admin: httpx.Client) -> None:
    key_id, key = new_key(admin)
    with httpx.stream("POST", narrow.url + NATIVE, json=STALL, headers=key, timeout=60) as stream:
        lines = stream.iter_lines()
        while "two" not in next(lines):
            pass
        assert admin.delete(f"/api/v1/keys/{key_id}").status_code == 204
        began = time.monotonic()
        assert "event: cancelled" in list(lines)
        assert time.monotonic() - began < IN_TIME
    error_of(httpx.post(narrow.url + NATIVE, json=PROMPT, headers=key), 401, "INVALID_API_KEY")
    eventually(lambda: len(narrow.workers.cancelled) >= 1)


def test_revocation_ends_a_request_that_waits_for_its_whole_answer(
    narrow: Served, admin: httpx.Client
) -> None:
    key_id, key = new_key(admin)
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=60) as sock:
        request = raw_request(narrow, NATIVE, WAIT).replace(
            narrow.keys["inference:text"].encode(), key["x-api-key"].encode()
        )
        sock.sendall(request)
        eventually(lambda: narrow.in_flight == 1)
        admin.delete(f"/api/v1/keys/{key_id}")
        assert sock.recv(65536).startswith(b"HTTP/1.1 409")


def test_revocation_ends_running_and_queued_tasks_of_that_key_only(
    narrow: Served, admin: httpx.Client
) -> None:
    key_id, key = new_key(admin)
    _, other_key = new_key(admin)
    running = [accept(admin, key, ENDLESS), accept(admin, other_key, ENDLESS)]
    eventually(lambda: narrow.services.dispatcher.running("demo") == 2)
    queued = [accept(admin, key, PROMPT), accept(admin, other_key, ENDLESS)]
    ran = len(narrow.workers.jobs)
    admin.delete(f"/api/v1/keys/{key_id}")
    for task_id in (running[0], queued[0]):
        eventually(lambda task_id=task_id: status(admin, task_id) == "cancelled", IN_TIME)
    assert status(admin, running[1]) == "running"
    eventually(lambda: status(admin, queued[1]) == "running")  # it got the free slot
    assert queued[0] not in {job.id for job in narrow.workers.jobs[ran:]}
    for task_id in (running[1], queued[1]):
        admin.delete(f"/api/v1/tasks/{task_id}")


def test_revocation_closes_a_websocket_that_watches_another_key_s_task(
    narrow: Served, admin: httpx.Client
) -> None:
    key_id, watcher = new_key(admin, scopes=["admin"])
    _, owner = new_key(admin)
    task_id = accept(admin, owner, WAIT)
    with open_watch(narrow.url, task_id, **watcher) as watched:
        admin.delete(f"/api/v1/keys/{key_id}")
        began = time.monotonic()
        _, code = heard(watched)
        assert (code, time.monotonic() - began < IN_TIME) == (1008, True)
    assert status(admin, task_id) in ("queued", "running")
    admin.delete(f"/api/v1/tasks/{task_id}")


def test_revocation_closes_a_websocket_that_came_with_a_ticket(
    narrow: Served, admin: httpx.Client
) -> None:
    key_id, key = new_key(admin)
    task_id = accept(admin, key, WAIT)
    body, url = {"task_id": task_id}, narrow.url + "/api/v1/auth/ws-ticket"
    ticket = httpx.post(url, json=body, headers=key).json()["ticket"]
    with open_watch(narrow.url, task_id, query=f"?ticket={ticket}") as watched:
        admin.delete(f"/api/v1/keys/{key_id}")
        messages, code = heard(watched)
    # Its own task ends with its key: the watcher may hear of that before it is closed.
    assert code in (1000, 1008)
    assert not {name for name, _ in messages} & {"completed", "failed"}
    eventually(lambda: status(admin, task_id) == "cancelled", IN_TIME)


def test_expiry_ends_streams_tasks_and_websockets(narrow: Served, admin: httpx.Client) -> None:
    key_id, key = new_key(admin, expires="1h")
    task_id = accept(admin, key, WAIT)
    with (
        open_watch(narrow.url, task_id, **key) as watched,
        httpx.stream("POST", narrow.url + NATIVE, json=STALL, headers=key, timeout=60) as stream,
    ):
        changed = admin.patch(f"/api/v1/keys/{key_id}", json={"expires": "1s"})
        assert changed.status_code == 200, changed.text
        assert "event: cancelled" in list(stream.iter_lines())
        _, code = heard(watched)
        assert code in (1000, 1008)
    eventually(lambda: status(admin, task_id) == "cancelled", IN_TIME)
    error_of(httpx.post(narrow.url + NATIVE, json=PROMPT, headers=key), 401, "EXPIRED_API_KEY")


def test_recovered_task_of_a_revoked_key_does_not_run(tmp_path: Path) -> None:
    with serve(tmp_path, slots=1) as first, admin_of(first) as client:
        key_id, key = new_key(client)
        _, other = new_key(client)
        running = accept(client, other, ENDLESS)
        eventually(lambda: status(client, running) == "running")
        revoked, kept = accept(client, key, PROMPT), accept(client, other, PROMPT)
        brief_id, brief = new_key(client, expires="1h")
        expired = accept(client, brief, PROMPT)
    asyncio.run(end_keys(first, revoked=key_id, expired=brief_id))
    with serve(tmp_path, slots=1) as again, admin_of(again) as client:
        eventually(lambda: status(client, kept) == "completed")
        for task_id in (revoked, expired):
            eventually(lambda task_id=task_id: status(client, task_id) == "cancelled")
        assert [job.id for job in again.workers.jobs] == [kept]


async def end_keys(served: Served, *, revoked: str, expired: str) -> None:
    """Revoke a key and let another expire while no server runs."""
    db = await Database.open(served.home.database)
    ring = await KeyRing.open(
        db, served.home.secret(PEPPER), AuditLog(db, served.home.secret(SEALING))
    )
    await ring.revoke(revoked)
    await ring.change(expired, expires_at=datetime.now(UTC) + timedelta(seconds=0.2))
    await asyncio.sleep(0.25)
    await db.close()
