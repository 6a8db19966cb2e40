"""Keys over HTTP: narrowed, changed, rotated, and never more than the key that made them."""

import asyncio
import email.utils
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, error_of
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch

KEYS = "/api/v1/keys"
DEEP = {**PROMPT, "model": "org/deep"}
ENDLESS = {**PROMPT, "prompt": "!stall", "stream": True}
MODELS_ROUTES = [
    ("POST", "/api/v1/models/org/deep/load"),
    ("POST", "/api/v1/models/org/deep/unload"),
    ("GET", "/api/v1/models/org/deep/fit"),
    ("GET", "/api/v1/models/org/deep"),
    ("DELETE", "/api/v1/models/org/deep"),
    ("GET", "/v1/models/org/deep"),
    ("GET", "/v1/models/org%2Fdeep"),
    ("GET", "/api/v1/models/nobody"),
]


def make(admin: httpx.Client, **fields: Any) -> dict[str, Any]:
    made = admin.post(KEYS, json={"name": "n", **fields})
    assert made.status_code == 201, made.text
    record: dict[str, Any] = made.json()
    return record


def client_of(served: Served, record: dict[str, Any]) -> httpx.Client:
    headers = {"authorization": f"Bearer {record['key']}"}
    return httpx.Client(base_url=served.url, headers=headers, timeout=60)


@pytest.fixture
def narrow(served: Served, admin: httpx.Client) -> Iterator[httpx.Client]:
    """Provide a client with all scopes for the model demo and for images only."""
    with client_of(served, make(admin, scopes=["admin"], models=["dem?", "paint*"])) as client:
        yield client


# ---- narrowed to models --------------------------------------------------------------------------


def test_model_outside_the_globs_is_refused_on_every_surface(narrow: httpx.Client) -> None:
    assert narrow.post(NATIVE, json=PROMPT).status_code == 200
    assert narrow.post(CHAT, json=MESSAGES).status_code == 200
    asynchronous = {"prefer": "respond-async"}
    for response in (
        narrow.post(NATIVE, json=DEEP),
        narrow.post(NATIVE, json={**DEEP, "stream": True}),
        narrow.post(NATIVE, json=DEEP, headers=asynchronous),
        narrow.post(CHAT, json={**MESSAGES, "model": "org/deep"}),
        narrow.post("/v1/completions", json=DEEP),
        narrow.post("/api/v1/inference/image-generation", json=DEEP),
        narrow.post("/v1/images/generations", json=DEEP),
        narrow.post("/api/v1/inference/text-to-speech", json={"model": "org/deep", "text": "x"}),
        narrow.post("/v1/audio/speech", json={"model": "org/deep", "input": "x", "voice": "a"}),
        *(narrow.request(method, path) for method, path in MODELS_ROUTES),
    ):
        assert error_of(response, 403, "MODEL_NOT_ALLOWED")["param"] == "model"


def test_model_outside_the_globs_is_in_no_list(narrow: httpx.Client) -> None:
    names = {each["model_id"] for each in narrow.get("/api/v1/models").json()["data"]}
    assert names == {each["id"] for each in narrow.get("/v1/models").json()["data"]}
    assert names == {"demo", "painter"}
    unknown = error_of(narrow.post(NATIVE, json={**PROMPT, "model": "demx"}), 404, "INVALID_MODEL")
    assert unknown["details"]["available_models"] == ["demo", "painter"]


def test_model_outside_the_globs_is_hidden_from_the_state_of_the_cluster(
    served: Served, admin: httpx.Client, narrow: httpx.Client
) -> None:
    for name in ("demo", "org/deep"):
        admin.post(f"/api/v1/models/{name}/load")
    status = narrow.get("/api/v1/cluster/status").json()
    assert {each["model_id"] for each in status["models"]} == {"demo", "painter"}
    for part in ("workers", "reservations"):
        assert "org/deep" not in {each["model"] for each in status[part]}
    assert {each["model"] for each in narrow.get("/api/v1/workers").json()["data"]} == {"demo"}
    for method, path in (
        ("POST", "/api/v1/workers/org/deep/0/restart"),
        ("POST", "/api/v1/workers/org/deep/0/drain"),
        ("DELETE", "/api/v1/workers/org/deep/0"),
    ):
        error_of(narrow.request(method, path), 403, "MODEL_NOT_ALLOWED")
    assert len(served.services.operations.replicas("org/deep")) == 1


def test_model_outside_the_globs_is_denied_in_tasks_and_their_websocket(
    served: Served, admin: httpx.Client, narrow: httpx.Client
) -> None:
    accepted = admin.post(NATIVE, json=DEEP, headers={"prefer": "respond-async"}).json()["task_id"]
    path = f"/api/v1/tasks/{accepted}"
    eventually(lambda: admin.get(path).json()["status"] == "completed")
    error_of(narrow.get(path), 403, "MODEL_NOT_ALLOWED")
    error_of(narrow.delete(path), 403, "MODEL_NOT_ALLOWED")
    ticket = narrow.post("/api/v1/auth/ws-ticket", json={"task_id": accepted})
    error_of(ticket, 403, "MODEL_NOT_ALLOWED")
    assert accepted in admin.get("/api/v1/tasks").text
    assert accepted not in narrow.get("/api/v1/tasks").text
    credential = {"authorization": narrow.headers["authorization"]}
    with pytest.raises(Exception, match="403"), open_watch(served.url, accepted, **credential):
        pass


def test_model_taken_from_a_key_is_refused_on_its_next_request(
    served: Served, admin: httpx.Client
) -> None:
    record = make(admin)
    with client_of(served, record) as client:
        assert client.post(NATIVE, json=DEEP).status_code == 200
        admin.patch(f"{KEYS}/{record['id']}", json={"models": ["demo"]})
        error_of(client.post(NATIVE, json=DEEP), 403, "MODEL_NOT_ALLOWED")
        admin.patch(f"{KEYS}/{record['id']}", json={"models": None})
        assert client.post(NATIVE, json=DEEP).status_code == 200


# ---- narrowed to addresses -----------------------------------------------------------------------


def test_address_outside_the_ranges_is_refused(served: Served, admin: httpx.Client) -> None:
    record = make(admin, ip_ranges=["10.0.0.0/8"])
    spoofs: list[dict[str, str]] = [
        {},
        {"x-forwarded-for": "10.0.0.1"},
        {"forwarded": "for=10.0.0.1"},
        {"x-real-ip": "10.0.0.1"},
    ]
    with client_of(served, record) as client:
        for headers in spoofs:
            refused = client.post(NATIVE, json=PROMPT, headers=headers)
            error_of(refused, 403, "IP_NOT_ALLOWED")
        admin.patch(f"{KEYS}/{record['id']}", json={"ip_ranges": ["::ffff:127.0.0.0/104"]})
        assert client.post(NATIVE, json=PROMPT).status_code == 200
    assert admin.get(f"{KEYS}/{record['id']}").json()["ip_ranges"] == ["127.0.0.0/8"]


def test_address_outside_the_ranges_is_refused_on_websockets_and_their_tickets(
    served: Served, admin: httpx.Client
) -> None:
    record = make(admin)
    with client_of(served, record) as client:
        accepted = client.post(NATIVE, json=PROMPT, headers={"prefer": "respond-async"}).json()
        task_id = accepted["task_id"]
        ticket = client.post("/api/v1/auth/ws-ticket", json={"task_id": task_id}).json()["ticket"]
    admin.patch(f"{KEYS}/{record['id']}", json={"ip_ranges": ["10.0.0.0/8"]})
    credential = {"x-api-key": record["key"]}
    for query, headers in (("", credential), (f"?ticket={ticket}", {})):
        with (
            pytest.raises(Exception, match="403"),
            open_watch(served.url, task_id, query=query, **headers),
        ):
            pass


# ---- changed -------------------------------------------------------------------------------------


def test_key_change_holds_at_once_and_is_stored(served: Served, admin: httpx.Client) -> None:
    record = make(admin, tier="pro", expires="1h")
    changed = admin.patch(
        f"{KEYS}/{record['id']}",
        json={"name": "m", "tier": "free", "scopes": ["models:read"], "expires": None},
    )
    assert changed.status_code == 200
    body = changed.json()
    assert "key" not in body
    assert (body["name"], body["tier"], body["expires_at"]) == ("m", "free", None)
    with client_of(served, record) as client:
        error_of(client.post(NATIVE, json=PROMPT), 403, "INSUFFICIENT_SCOPE")
        assert client.get("/api/v1/models").status_code == 200
    shown = admin.get(f"{KEYS}/{record['id']}").json()
    assert {**shown, "last_used_at": None} == body
    assert admin.patch(f"{KEYS}/{record['id']}", json={}).json()["name"] == "m"


_TWICE = "quotas.daily.tokens"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"id": "x"}, "UNSUPPORTED_PARAMETER", "id"),
        ({"key": "x"}, "UNSUPPORTED_PARAMETER", "key"),
        ({"revoked_at": None}, "UNSUPPORTED_PARAMETER", "revoked_at"),
        ({"quotas": {"daily": {"words": 5}}}, "UNSUPPORTED_PARAMETER", "quotas.daily.words"),
        ({"quotas": {"daily": {"tokens": 0.5}}}, "INVALID_REQUEST", "quotas.daily.tokens"),
        (
            {"quotas": {"monthly": {"gpu_seconds": -1}}},
            "INVALID_REQUEST",
            "quotas.monthly.gpu_seconds",
        ),
        (
            {"quotas": {"tokens": 5, "daily": {"tokens": 5}}},
            "INVALID_REQUEST",
            "quotas.daily.tokens",
        ),
        ({"scopes": ["everything"]}, "INVALID_REQUEST", "scopes"),
        ({"scopes": []}, "INVALID_REQUEST", "scopes"),
        ({"scopes": None}, "INVALID_REQUEST", "scopes"),
        ({"tier": "gold"}, "INVALID_REQUEST", "tier"),
        ({"name": ""}, "INVALID_REQUEST", "name"),
        ({"expires": "yesterday"}, "INVALID_REQUEST", "expires"),
        ({"models": []}, "INVALID_REQUEST", "models"),
        ({"models": ["a b"]}, "INVALID_REQUEST", "models[0]"),
        ({"ip_ranges": ["10.0.0.1/8"]}, "INVALID_REQUEST", "ip_ranges[0]"),
    ],
)
def test_key_change_that_is_not_valid_is_refused_by_name(
    admin: httpx.Client, body: dict[str, Any], code: str, param: str
) -> None:
    record = make(admin)
    refused = admin.patch(f"{KEYS}/{record['id']}", json=body)
    assert error_of(refused, 400, code)["param"] == param
    if "id" not in body and "key" not in body and "revoked_at" not in body:
        refused = admin.post(KEYS, json={"name": "n", **body})
        if body.get("scopes", "") is not None:
            assert error_of(refused, 400, code)["param"] == param


def test_key_that_is_revoked_or_unknown_is_neither_changed_nor_rotated(admin: httpx.Client) -> None:
    record = make(admin)
    admin.delete(f"{KEYS}/{record['id']}")
    error_of(admin.patch(f"{KEYS}/{record['id']}", json={"name": "m"}), 409, "CONFLICT")
    error_of(admin.post(f"{KEYS}/{record['id']}/rotate"), 409, "CONFLICT")
    error_of(admin.patch(f"{KEYS}/nobody", json={"name": "m"}), 404, "KEY_NOT_FOUND")
    error_of(admin.post(f"{KEYS}/nobody/rotate"), 404, "KEY_NOT_FOUND")


# ---- a key grants only what it holds -------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tier", "enterprise"),
        ("models", ["*"]),
        ("models", ["demo", "org/deep"]),
        ("ip_ranges", ["0.0.0.0/0"]),
        ("expires", "30d"),
    ],
)
def test_key_grants_only_what_it_holds(
    served: Served, admin: httpx.Client, field: str, value: object
) -> None:
    bounds = {"models": ["demo*"], "ip_ranges": ["127.0.0.0/8"], "expires": "1h", "tier": "pro"}
    lesser = make(admin, scopes=["admin"], **bounds)
    wider = make(admin)
    with client_of(served, lesser) as client:
        own = make(client)
        assert (own["models"], own["ip_ranges"]) == (["demo*"], ["127.0.0.0/8"])
        assert own["expires_at"] == lesser["expires_at"]
        refused = client.post(KEYS, json={"name": "n", field: value})
        assert error_of(refused, 403, "INSUFFICIENT_SCOPE")["param"] == field
        for key_id in (own["id"], lesser["id"]):
            refused = client.patch(f"{KEYS}/{key_id}", json={field: value})
            assert error_of(refused, 403, "INSUFFICIENT_SCOPE")["param"] == field
        if field in ("models", "ip_ranges", "expires"):
            refused = client.patch(f"{KEYS}/{own['id']}", json={field: None})
            assert error_of(refused, 403, "INSUFFICIENT_SCOPE")["param"] == field
        error_of(client.patch(f"{KEYS}/{wider['id']}", json={}), 403, "INSUFFICIENT_SCOPE")
        error_of(client.post(f"{KEYS}/{wider['id']}/rotate"), 403, "INSUFFICIENT_SCOPE")
        assert client.patch(f"{KEYS}/{own['id']}", json={"tier": "pro"}).status_code == 200
        assert client.post(f"{KEYS}/{own['id']}/rotate").status_code == 200
        # Ending a key is no grant.
        assert client.delete(f"{KEYS}/{wider['id']}").status_code == 204


# ---- rotated -------------------------------------------------------------------------------------


def test_rotation_keeps_the_old_secret_until_the_grace_ends(
    served: Served, admin: httpx.Client
) -> None:
    record = make(admin)
    rotated = admin.post(f"{KEYS}/{record['id']}/rotate", json={"grace": "2h"})
    assert rotated.status_code == 200
    body = rotated.json()
    assert (body["id"], body["last_four"]) == (record["id"], body["key"][-4:])
    assert body["key"] != record["key"]
    with client_of(served, body) as new, client_of(served, record) as old:
        answer = new.post(NATIVE, json=PROMPT)
        assert answer.status_code == 200
        assert not {"deprecation", "sunset"} & set(answer.headers)
        for answer in (
            old.post(NATIVE, json=PROMPT),
            old.post(NATIVE, json={**PROMPT, "stream": True}),
            old.post(NATIVE, json={**PROMPT, "model": "nobody"}),
        ):
            assert abs(int(answer.headers["deprecation"].removeprefix("@")) - time.time()) < 60
            ends = email.utils.parsedate_to_datetime(answer.headers["sunset"])
            assert abs(ends - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=1)
        admin.delete(f"{KEYS}/{record['id']}")
        for client in (new, old):
            error_of(client.post(NATIVE, json=PROMPT), 401, "INVALID_API_KEY")


def test_rotation_without_grace_ends_the_old_secret_and_its_work_at_once(
    served: Served, admin: httpx.Client
) -> None:
    record = make(admin)
    with client_of(served, record) as old, old.stream("POST", NATIVE, json=ENDLESS) as stream:
        lines = stream.iter_lines()
        while "two" not in next(lines):
            pass
        body = admin.post(f"{KEYS}/{record['id']}/rotate", json={"grace": "0s"}).json()
        error_of(httpx.post(f"{served.url}{NATIVE}", headers=old.headers), 401, "EXPIRED_API_KEY")
        with client_of(served, body) as new:
            assert new.post(NATIVE, json=PROMPT).status_code == 200
        assert "event: cancelled" in list(lines)


def test_rotation_ends_tasks_and_websockets_of_the_old_secret_with_its_grace(
    served: Served, admin: httpx.Client
) -> None:
    record = make(admin)
    background = {"prefer": "respond-async"}
    endless = {**PROMPT, "prompt": "!stall"}
    with client_of(served, record) as old:
        before = old.post(NATIVE, json=endless, headers=background).json()["task_id"]
        body = admin.post(f"{KEYS}/{record['id']}/rotate", json={"grace": "1s"}).json()
        with client_of(served, body) as new:
            after = new.post(NATIVE, json=endless, headers=background).json()["task_id"]
            with open_watch(served.url, after, **{"x-api-key": record["key"]}) as watched:
                _, code = heard(watched)
                assert code == 1008
            path = f"/api/v1/tasks/{before}"
            eventually(lambda: new.get(path).json()["status"] == "cancelled")
            assert new.get(f"/api/v1/tasks/{after}").json()["status"] == "running"
            new.delete(f"/api/v1/tasks/{after}")
            error_of(old.get(path), 401, "EXPIRED_API_KEY")
    served.wait_idle()


def test_rotation_twice_ends_the_first_secret(served: Served, admin: httpx.Client) -> None:
    first = make(admin)
    second = admin.post(f"{KEYS}/{first['id']}/rotate").json()
    third = admin.post(f"{KEYS}/{first['id']}/rotate").json()
    with client_of(served, first) as client:
        error_of(client.post(NATIVE, json=PROMPT), 401, "INVALID_API_KEY")
    for record in (second, third):
        with client_of(served, record) as client:
            assert client.post(NATIVE, json=PROMPT).status_code == 200


def test_rotation_in_parallel_leaves_one_secret_and_its_predecessor(
    served: Served, admin: httpx.Client
) -> None:
    record = make(admin)

    async def rotate() -> list[str]:
        headers = served.headers("admin")
        async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=60) as client:
            path = f"{KEYS}/{record['id']}/rotate"
            return [
                answer.json()["key"]
                for answer in await asyncio.gather(*(client.post(path) for _ in range(5)))
            ]

    secrets = [*asyncio.run(rotate()), record["key"]]
    answers = [
        httpx.post(served.url + NATIVE, json=PROMPT, headers={"x-api-key": each}).status_code
        for each in secrets
    ]
    assert sorted(answers) == [200, 200, 401, 401, 401, 401]


@pytest.mark.parametrize("grace", ["soon", "91d", "-1h", "", "99999999w"])
def test_rotation_with_an_invalid_grace_is_refused(admin: httpx.Client, grace: str) -> None:
    record = make(admin)
    refused = admin.post(f"{KEYS}/{record['id']}/rotate", json={"grace": grace})
    assert error_of(refused, 400, "INVALID_REQUEST")["param"] == "grace"


def test_rotation_survives_a_restart_and_replaces_the_admin_key(tmp_path: Path) -> None:
    with serve(tmp_path) as first:
        old = first.keys["admin"]
        headers = first.headers("admin")
        own = httpx.get(first.url + KEYS, headers=headers).json()["data"][0]["id"]
        new = httpx.post(f"{first.url}{KEYS}/{own}/rotate", headers=headers).json()["key"]
        assert first.home.admin_key.read_text() == f"{new}\n"
        assert first.home.admin_key.stat().st_mode & 0o777 == 0o600
    with serve(tmp_path) as again:
        answers = [httpx.get(again.url + KEYS, headers={"x-api-key": each}) for each in (old, new)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert ["sunset" in answer.headers for answer in answers] == [True, False]
