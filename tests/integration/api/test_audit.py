"""The audit log through the API: every change is in it before it is answered, and no secret is."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from bitinglip.access import credentials
from bitinglip.audit.chain import SEALING
from bitinglip.settings import Settings
from tests.support.api_server import Served, serve
from tests.support.audit_log import on_disk, verdict
from tests.support.http_client import NATIVE, PROMPT, error_of
from tests.support.model_folders import llama
from tests.support.other_program import change
from tests.support.wait import eventually
from tests.support.websocket_client import refusal

AUDIT = "/api/v1/audit"
KEYS = "/api/v1/keys"
AGENT = "test/1"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("audit")) as served:
        yield served


@pytest.fixture
def admin(served: Served) -> Iterator[httpx.Client]:
    with client_of(served, "admin") as client:
        yield client
    served.wait_idle()


def client_of(served: Served, scope: str) -> httpx.Client:
    headers = {**served.headers(scope), "user-agent": AGENT}
    return httpx.Client(base_url=served.url, headers=headers, timeout=60)


# ---- what an entry holds -------------------------------------------------------------------------


def test_audit_of_a_key_shows_the_changed_fields(admin: httpx.Client) -> None:
    made = admin.post(KEYS, json={"name": "field", "models": ["demo*"]}).json()
    path = f"{KEYS}/{made['id']}"
    admin.patch(path, json={"tier": "pro", "models": None}).raise_for_status()
    turned = admin.post(f"{path}/rotate", json={"grace": "1h"}).json()
    assert admin.delete(path).status_code == 204
    rows = admin.get(AUDIT, params={"target": made["id"]}).json()["data"]
    assert [row["action"] for row in rows] == [
        "key.revoke",
        "key.rotate",
        "key.update",
        "key.create",
    ]
    revoked, rotated, updated, created = rows
    assert created["before"] is None
    assert created["after"]["models"] == ["demo*"]
    assert (created["after"]["name"], created["after"]["tier"]) == ("field", "free")
    assert updated["before"] == {"tier": "free", "models": ["demo*"]}
    assert updated["after"] == {"tier": "pro", "models": None}
    assert rotated["before"]["last_four"] == made["last_four"]
    assert rotated["after"]["last_four"] == turned["last_four"]
    assert rotated["after"]["generation"] == 2
    assert list(revoked["after"]) == ["revoked_at"]


def test_audit_names_the_token_that_was_used(served: Served, admin: httpx.Client) -> None:
    token = admin.post("/api/v1/auth/token").json()["access_token"]
    issued = on_disk(served.home, action="token.issue")[-1]
    unloaded = httpx.post(
        f"{served.url}/api/v1/models/demo/unload", headers={"authorization": f"Bearer {token}"}
    )
    assert unloaded.status_code == 200
    row = on_disk(served.home, action="model.unload")[-1]
    assert row["token"] == issued["target"] != ""
    assert row["actor"] == issued["actor"]


def test_audit_of_a_failure_has_its_code_and_a_bad_request_is_not_audited(
    served: Served, admin: httpx.Client
) -> None:
    key = admin.post(KEYS, json={"name": "gone"}).json()["id"]
    admin.delete(f"{KEYS}/{key}")
    error_of(admin.patch(f"{KEYS}/{key}", json={"tier": "pro"}), 409, "CONFLICT")
    before = len(on_disk(served.home))
    error_of(admin.patch(f"{KEYS}/{key}", json={"tier": "no such"}), 400, "INVALID_REQUEST")
    error_of(admin.delete(f"{KEYS}/nobody"), 404, "KEY_NOT_FOUND")
    eventually(
        lambda: bool(on_disk(served.home, action="key.update", outcome="CONFLICT", target=key))
    )
    assert len(on_disk(served.home)) <= before + 1


@pytest.mark.sqlite  # by a pragma of its own
def test_audit_that_cannot_be_written_refuses_changes_and_loses_no_entry(tmp_path: Path) -> None:
    with serve(tmp_path) as served, client_of(served, "admin") as admin:

        async def refuse_writes(state: str) -> None:
            async with served.services.db.write() as session:
                await session.execute(text(f"PRAGMA query_only = {state}"))

        def switch(state: str) -> None:
            asyncio.run_coroutine_threadsafe(refuse_writes(state), served.loop).result(60)

        switch("ON")
        keys = len(served.services.keys.list())
        refused = "OVERLOADED"
        error_of(admin.post(KEYS, json={"name": "none"}), 503, refused)
        # what is outside of the database is done, and the answer says that the entry is missing
        error_of(admin.post("/api/v1/models/demo/load"), 503, refused)
        assert len(served.services.keys.list()) == keys
        switch("OFF")
        eventually(lambda: bool(on_disk(served.home, action="model.load")))
        (row,) = on_disk(served.home, action="model.load")
        assert (row["outcome"], row["target"]) == ("ok", "demo")
        (row,) = on_disk(served.home, action="key.create", outcome=refused)
        assert row["after"] is None
        assert verdict(served.home)[0]


# ---- refusals ------------------------------------------------------------------------------------


def test_audit_counts_a_flood_of_wrong_keys(served: Served) -> None:
    """The first is entered at once, the others are a number."""
    refusals = served.services.audit.refusals
    before = len(on_disk(served.home, action="auth.refused"))
    wrong = credentials.make().text
    for _ in range(30):
        headers = {"x-api-key": wrong, "user-agent": "flood"}
        error_of(httpx.get(served.url + KEYS, headers=headers), 401, "INVALID_API_KEY")
    eventually(lambda: len(on_disk(served.home, action="auth.refused")) == before + 1)
    row = on_disk(served.home, action="auth.refused")[-1]
    assert (row["actor"], row["address"], row["outcome"], row["user_agent"]) == (
        "unknown",
        "127.0.0.1",
        "INVALID_API_KEY",
        "flood",
    )
    assert row["target"] == credentials.parse(wrong)
    served.loop.call_soon_threadsafe(refusals.finish)
    eventually(lambda: len(on_disk(served.home, action="auth.refused")) == before + 2)
    assert json.loads(on_disk(served.home, action="auth.refused")[-1]["after"])["count"] == 29


def test_audit_counts_wrong_tickets_of_websockets_too(served: Served) -> None:
    """Check that every kind of credential goes through the same counters."""
    status, error = refusal(served.url, "no-task", query="?ticket=wrong")
    assert (status, error["code"]) == (401, "INVALID_TOKEN")
    status, error = refusal(served.url, "no-task", authorization="Bearer wrong")
    assert (status, error["code"]) == (401, "INVALID_API_KEY")
    served.loop.call_soon_threadsafe(served.services.audit.refusals.finish)
    expected = {"INVALID_TOKEN", "INVALID_API_KEY"}
    eventually(
        lambda: expected <= {row["outcome"] for row in on_disk(served.home, action="auth.refused")},
        5,
    )


def test_audit_of_attempts_at_more_than_a_key_may(served: Served, admin: httpx.Client) -> None:
    def refused(client: httpx.Client, method: str, path: str, body: Any = None) -> dict[str, Any]:
        error_of(client.request(method, path, json=body), 403, "INSUFFICIENT_SCOPE")
        served.loop.call_soon_threadsafe(served.services.audit.refusals.finish)
        eventually(lambda: bool(wanted(client)))
        return wanted(client)[-1]

    def wanted(client: httpx.Client) -> list[dict[str, Any]]:
        key = client.headers["authorization"].partition(" ")[2]
        return on_disk(served.home, action="access.refused", actor=credentials.parse(key))

    with client_of(served, "models:read") as reader:
        row = refused(reader, "DELETE", "/api/v1/models/demo")
        assert row["outcome"] == "INSUFFICIENT_SCOPE"
        assert row["target"] == "DELETE /api/v1/models/{model_id}"
        error_of(reader.get(AUDIT), 403, "INSUFFICIENT_SCOPE")
        eventually(lambda: wanted(reader)[-1]["target"] == "GET /api/v1/audit")
        # what is no operator's affair is none of the log's
        error_of(reader.post(NATIVE, json=PROMPT), 403, "INSUFFICIENT_SCOPE")
        assert not any("inference" in row["target"] for row in wanted(reader))
    made = admin.post(KEYS, json={"name": "small admin", "scopes": ["admin"]}).json()
    with httpx.Client(base_url=served.url) as small:
        small.headers["authorization"] = f"Bearer {made['key']}"
        row = refused(small, "POST", KEYS, {"name": "x", "tier": "operator"})
        assert (row["target"], row["outcome"]) == (f"POST {KEYS}", "INSUFFICIENT_SCOPE")


# ---- secrets -------------------------------------------------------------------------------------


def test_audit_holds_no_secret_wherever_one_is_put(
    served: Served, admin: httpx.Client, tmp_path: Path
) -> None:
    planted, prompt = credentials.make().text, "a prompt that no other key may read"
    session = admin.post("/api/v1/auth/token").json()["access_token"]
    made = admin.post(KEYS, json={"name": "kept"}).json()
    rotated = admin.post(f"{KEYS}/{made['id']}/rotate").json()
    secrets = [planted, session, made["key"], rotated["key"], *served.keys.values()]
    for secret in (planted, session):
        headers = {"user-agent": f"agent {secret}", "x-request-id": secret[:128]}
        answer = admin.post(KEYS, json={"name": secret}, headers=headers)
        error_of(answer, 400, "INVALID_REQUEST")
        admin.post(KEYS, json={"name": "x"}, headers=headers).raise_for_status()
        admin.post(f"/api/v1/models/{secret}/load", headers=headers)
        admin.delete(f"{KEYS}/{secret}", headers=headers)
        admin.post("/api/v1/auth/revoke", json={"token": secret}, headers=headers)
        httpx.get(served.url + KEYS, headers={"authorization": f"Bearer {secret}x", **headers})
        folder = str(llama(tmp_path / secret[:80]))
        admin.post("/api/v1/models/import", json={"path": folder, "name": "p"}, headers=headers)
        admin.delete("/api/v1/models/p", headers=headers)
    admin.post(NATIVE, json={**PROMPT, "prompt": prompt}).raise_for_status()
    served.loop.call_soon_threadsafe(served.services.audit.refusals.finish)
    eventually(lambda: not served.services.audit._waiting)
    assert on_disk(served.home, action="model.import")
    files = [file for file in served.home.root.glob("bitinglip.db*") if file.is_file()]
    stored = b"".join(file.read_bytes() for file in files)
    stored += repr(on_disk(served.home)).encode()
    assert b"key.rotate" in stored
    for secret in secrets:
        # all but the public part of a key, the signature of a token
        hidden = secret.rpartition("_")[2][:43] if "_" in secret[:9] else secret.rpartition(".")[2]
        assert hidden.encode() not in stored, secret
    assert prompt.encode() not in stored
    assert served.home.secret(SEALING) not in stored


# ---- the routes ----------------------------------------------------------------------------------


def test_audit_list_is_selected_paged_and_bounded(admin: httpx.Client) -> None:
    for _ in range(3):
        admin.post(KEYS, json={"name": "many"})
    page = admin.get(AUDIT, params={"action": "key.create", "limit": 2, "offset": 1}).json()
    assert (len(page["data"]), page["limit"], page["offset"]) == (2, 2, 1)
    assert page["total"] >= 3
    numbers = [row["entry"] for row in page["data"]]
    assert numbers == sorted(numbers, reverse=True)
    newest = admin.get(AUDIT, params={"limit": 1}).json()["data"][0]
    later = admin.get(AUDIT, params={"from": newest["at"]}).json()["data"]
    assert [row["entry"] for row in later] == [newest["entry"]]
    assert admin.get(AUDIT, params={"to": "2020-01-01"}).json()["total"] == 0
    assert admin.get(AUDIT, params={"actor": "server", "action": "server"}).json()["total"] >= 1
    for query in ({"action": "no"}, {"from": "yesterday"}, {"limit": "1001"}, {"to": "9" * 99}):
        error_of(admin.get(AUDIT, params=query), 400, "INVALID_REQUEST")
    error_of(admin.get(AUDIT, params={"who": "me"}), 400, "UNSUPPORTED_PARAMETER")


def test_audit_verify_says_where_the_log_was_changed(tmp_path: Path) -> None:
    with serve(tmp_path) as served, client_of(served, "admin") as admin:
        first = admin.get(f"{AUDIT}/verify").json()
        assert first == {"valid": True, "rows": first["rows"], "first_bad": None}
        assert first["rows"] == admin.get(AUDIT).json()["total"] > 0
        error_of(admin.get(f"{AUDIT}/verify", params={"x": "1"}), 400, "UNSUPPORTED_PARAMETER")
        with client_of(served, "cluster:write") as other:
            error_of(other.get(AUDIT), 403, "INSUFFICIENT_SCOPE")
            error_of(other.get(f"{AUDIT}/verify"), 403, "INSUFFICIENT_SCOPE")
    change(served.home.database, "UPDATE audit_log SET actor = 'another' WHERE seq = 2")
    with serve(tmp_path) as again, client_of(again, "admin") as admin:
        # found at the start, told by the health check; the server goes on
        eventually(lambda: "audit log" in str(admin.get("/health").json()))
        assert "entry 2" in admin.get("/health").json()["checks"]["database"]["detail"]
        assert admin.get("/readyz").status_code == 200
        found = admin.get(f"{AUDIT}/verify").json()
        assert (found["valid"], found["first_bad"]) == (False, 2)
        admin.post(KEYS, json={"name": "on"}).raise_for_status()


def test_audit_of_a_start_tells_changed_settings(tmp_path: Path) -> None:
    with serve(tmp_path):
        pass
    with serve(tmp_path, queue={"max_waiting": 7}) as served, client_of(served, "admin") as admin:
        rows = admin.get(AUDIT, params={"actor": "server", "from": "2000-01-01"}).json()["data"]
        by_action = {row["action"]: row for row in reversed(rows)}
        changed = by_action["settings.change"]
        assert changed["before"] == {"queue.max_waiting": None}
        assert changed["after"] == {"queue.max_waiting": 7}
        assert by_action["server.start"]["after"]["settings"]["queue.max_waiting"] == 7
        assert "ended_without_stop" not in by_action["server.start"]["after"]
        assert "server.stop" in by_action
    assert Settings().queue.max_waiting != 7
    assert on_disk(served.home)[-1]["action"] == "server.stop"
    assert verdict(served.home)[0]
