"""A key that loses a model or a scope ends what it had begun with it, and nothing else."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.access.keys import PEPPER, KeyRing
from bitinglip.audit.chain import SEALING
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from tests.integration.api.test_images import paint
from tests.integration.api.test_revocation import IN_TIME, accept, admin_of, new_key, status
from tests.support.api_server import Served, echo, serve
from tests.support.http_client import CHAT, NATIVE, PROMPT, error_of
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch
from workers import protocol

STALL = {**PROMPT, "prompt": "!stall", "stream": True}
DEEP = {"model": "org/deep", "prompt": "!stall"}
IMAGES = "/api/v1/inference/image-generation"
FOX = {"model": "painter", "prompt": "a fox", "width": 64, "height": 64, "steps": 4}


def engine(job: protocol.Job) -> Any:
    return paint(job) if isinstance(job, protocol.ImageJob) else echo(job)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server that runs two jobs of a model at once, and takes no request for a local
    one."""
    with serve(
        tmp_path_factory.mktemp("narrowed"), engine, slots=2, server={"trust_loopback": False}
    ) as served:
        yield served


@pytest.fixture
def admin(served: Served) -> Iterator[httpx.Client]:
    with admin_of(served) as admin:
        yield admin
    served.wait_idle()


def change(admin: httpx.Client, key_id: str, **fields: Any) -> None:
    answer = admin.patch(f"/api/v1/keys/{key_id}", json=fields)
    assert answer.status_code == 200, answer.text


def test_narrowing_ends_work_on_the_models_that_a_key_loses(
    served: Served, admin: httpx.Client
) -> None:
    key_id, key = new_key(admin)
    _, other = new_key(admin)
    running, _ = (accept(admin, key, {**PROMPT, "prompt": "!stall"}) for _ in range(2))
    spared = accept(admin, key, DEEP)
    eventually(lambda: served.services.dispatcher.running("demo") == 2)
    queued = accept(admin, key, PROMPT)
    others = accept(admin, other, {**PROMPT, "prompt": "!stall"})
    change(admin, key_id, models=["org/*"])
    for task_id in (running, queued):
        eventually(lambda task_id=task_id: status(admin, task_id) == "cancelled", IN_TIME)
    eventually(lambda: status(admin, others) == "running")
    assert status(admin, spared) == "running"
    for task_id in (spared, others):
        admin.delete(f"/api/v1/tasks/{task_id}")


@pytest.mark.parametrize(
    "lost", [{"models": ["painter"]}, {"scopes": ["inference:image"]}], ids=["model", "scope"]
)
@pytest.mark.parametrize("path", [NATIVE, CHAT])
def test_narrowing_ends_streams(
    served: Served, admin: httpx.Client, lost: dict[str, Any], path: str
) -> None:
    key_id, key = new_key(admin)
    body = dict(STALL)
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    with httpx.stream("POST", served.url + path, json=body, headers=key, timeout=60) as stream:
        lines = stream.iter_lines()
        while "two" not in next(lines):
            pass
        change(admin, key_id, **lost)
        rest = "\n".join(lines)
    assert "cancelled" in rest.lower()
    assert "[DONE]" not in rest
    change(admin, key_id, models=None, scopes=["inference:text"])
    answer = httpx.post(served.url + NATIVE, json=PROMPT, headers=key)
    assert answer.status_code == 200


def test_narrowing_closes_websockets_of_watchers(served: Served, admin: httpx.Client) -> None:
    key_id, watcher = new_key(admin, scopes=["admin"])
    _, owner = new_key(admin)
    task_id = accept(admin, owner, {**PROMPT, "prompt": "!wait"})
    with open_watch(served.url, task_id, **watcher) as watched:
        change(admin, key_id, models=["org/*"])
        assert heard(watched)[1] == 1008
    assert status(admin, task_id) in ("queued", "running")
    admin.delete(f"/api/v1/tasks/{task_id}")


def test_narrowing_acts_on_what_a_token_began(served: Served, admin: httpx.Client) -> None:
    key_id, key = new_key(admin)
    url = f"{served.url}/api/v1/auth/token"
    tokens = [httpx.post(url, headers=key).json()["access_token"] for _ in range(2)]
    first, second = ({"authorization": f"Bearer {token}"} for token in tokens)
    ended, spared = accept(admin, first, DEEP), accept(admin, second, DEEP)
    httpx.post(f"{served.url}/api/v1/auth/revoke", headers=first)
    eventually(lambda: status(admin, ended) == "cancelled", IN_TIME)
    assert status(admin, spared) != "cancelled"
    change(admin, key_id, models=["demo"])
    eventually(lambda: status(admin, spared) == "cancelled", IN_TIME)


def test_narrowing_ends_tasks_of_the_last_run(tmp_path: Path) -> None:
    with serve(tmp_path, slots=1) as first, admin_of(first) as client:
        key_id, key = new_key(client)
        running = accept(client, key, {**PROMPT, "prompt": "!stall"})
        eventually(lambda: status(client, running) == "running")
        waiting = accept(client, key, PROMPT)

    async def narrow() -> None:
        db = await Database.open(first.home.database)
        audit = AuditLog(db, first.home.secret(SEALING))
        ring = await KeyRing.open(db, first.home.secret(PEPPER), audit)
        await ring.change(key_id, models=["painter"])
        await db.close()

    asyncio.run(narrow())
    with serve(tmp_path, slots=1) as again, admin_of(again) as client:
        eventually(lambda: status(client, waiting) == "cancelled", IN_TIME)
        assert again.workers.jobs == []


def test_narrowing_denies_the_files_of_a_model(served: Served, admin: httpx.Client) -> None:
    key_id, key = new_key(admin)
    made = httpx.post(served.url + IMAGES, json={**FOX, "output": "url"}, headers=key)
    url = served.url + made.json()["result"]["images"][0]["url"]
    assert httpx.get(url, headers=key).status_code == 200
    change(admin, key_id, models=["demo"])
    error_of(httpx.get(url, headers=key), 403, "MODEL_NOT_ALLOWED")
    _, narrow_admin = new_key(admin, scopes=["admin"], models=["demo"])
    error_of(httpx.get(url, headers=narrow_admin), 403, "MODEL_NOT_ALLOWED")
    change(admin, key_id, models=["paint*"])
    assert httpx.get(url, headers=key).status_code == 200


def test_narrowing_hides_models_in_the_metrics(served: Served, admin: httpx.Client) -> None:
    _, key = new_key(admin)
    for model in ("demo", "org/deep"):
        body = {**PROMPT, "model": model}
        assert httpx.post(served.url + NATIVE, json=body, headers=key).status_code == 200
    _, narrow = new_key(admin, scopes=["cluster:read"], models=["demo"])
    openmetrics = {"accept": "application/openmetrics-text; version=1.0.0"}
    for accepted in ({}, openmetrics):
        headers = {**narrow, **accepted}
        shown = httpx.get(f"{served.url}/metrics", headers=headers)
        assert shown.status_code == 200
        assert 'inference_requests_total{model="demo",type="text"}' in shown.text
        assert "bitinglip_in_flight_requests 0.0" in shown.text
        assert "org/deep" not in shown.text
        assert "painter" not in shown.text
        full = admin.get("/metrics", headers=accepted).text
        assert 'model="org/deep"' in full
        assert "# HELP bitinglip_images" in shown.text
