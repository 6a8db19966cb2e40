"""Requests whose body comes long after their headers, when their key is no longer what it was."""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from bitinglip.api import auth
from tests.support.api_server import Served
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, code_on
from tests.support.wait import eventually

KEYS = "/api/v1/keys"
FORM = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\npainter\r\n--x--\r\n'
JSON, MULTIPART = "application/json", "multipart/form-data; boundary=x"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count every body as late, so that no test has to wait."""
    monkeypatch.setattr(auth, "CONFIRM_SECONDS", 0.0)


@pytest.fixture
def victim(admin: httpx.Client) -> Iterator[str]:
    """Provide the id of a key that a stranger would like to change."""
    made = admin.post(KEYS, json={"name": "victim"}).json()
    yield made["id"]
    admin.delete(f"{KEYS}/{made['id']}")


def new_key(admin: httpx.Client) -> tuple[str, str]:
    made = admin.post(KEYS, json={"name": "n", "scopes": ["admin"]}).json()
    return made["id"], made["key"]


class Late:
    """Holds a request that has been admitted, and waits for its body."""

    def __init__(
        self, served: Served, method: str, path: str, key: str, body: bytes, kind: str
    ) -> None:
        self._body = body
        self._connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        self._connection.putrequest(method, path)
        headers = {"x-api-key": key, "content-type": kind, "content-length": str(len(body))}
        for name, value in headers.items():
            self._connection.putheader(name, value)
        self._connection.endheaders()

    def send_body(self) -> tuple[int, str]:
        """Send the body; return the answer's status and its error's code."""
        self._connection.send(self._body)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read()).get("error", {}).get("code", "")

    def close(self) -> None:
        self._connection.close()


def admitted(served: Served, key_id: str) -> None:
    """Wait until a request of this key waits for its body."""
    eventually(lambda: served.services.admission._all.count(key_id) == 1)


REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", KEYS, {"name": "left behind", "scopes": ["admin"]}),
    ("PATCH", KEYS + "/{victim}", {"name": "changed"}),
    ("POST", KEYS + "/{victim}/rotate", {"grace": "1h"}),
    ("POST", "/api/v1/auth/token", {"ttl": 60}),
    ("POST", "/api/v1/auth/revoke", {"token": "a.b.c"}),
    ("POST", "/api/v1/auth/ws-ticket", {"task_id": "x"}),
    ("POST", "/api/v1/models/import", {"path": "/nowhere", "name": "x"}),
    ("POST", NATIVE, PROMPT),
    ("POST", NATIVE, {**PROMPT, "async": True}),
    ("POST", CHAT, {**MESSAGES, "stream": True}),
    ("POST", "/v1/images/edits", None),
]


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
def test_withheld_body_does_nothing_for_a_key_that_was_revoked_meanwhile(
    served: Served, admin: httpx.Client, victim: str, method: str, path: str, body: Any
) -> None:
    key_id, key = new_key(admin)
    names = [each["name"] for each in admin.get(KEYS + "?limit=200").json()["data"]]
    jobs = len(served.workers.jobs)
    raw, kind = (FORM, MULTIPART) if body is None else (json.dumps(body).encode(), JSON)
    path = path.replace("{victim}", victim)
    with closing(Late(served, method, path, key, raw, kind)) as late:
        admitted(served, key_id)
        assert admin.delete(f"{KEYS}/{key_id}").status_code == 204
        assert late.send_body() == (401, code_on(path, "INVALID_API_KEY"))
    assert [each["name"] for each in admin.get(KEYS + "?limit=200").json()["data"]] == names
    assert len(served.workers.jobs) == jobs
    eventually(lambda: served.services.admission._all.count(key_id) == 0)


def test_withheld_body_does_no_more_than_its_key_may_by_now(
    served: Served, admin: httpx.Client
) -> None:
    changes: list[tuple[dict[str, Any], tuple[int, str]]] = [
        ({"scopes": ["inference:text"]}, (403, "INSUFFICIENT_SCOPE")),
        ({"ip_ranges": ["10.0.0.0/8"]}, (403, "IP_NOT_ALLOWED")),
        ({"tier": "pro"}, (403, "INSUFFICIENT_SCOPE")),  # a key of tier enterprise is more now
        ({"name": "renamed"}, (201, "")),
    ]
    asked = json.dumps({"name": "late", "tier": "enterprise", "scopes": ["admin"]}).encode()
    for change, outcome in changes:
        made = admin.post(KEYS, json={"name": "n", "scopes": ["admin"], "tier": "enterprise"})
        key_id, key = made.json()["id"], made.json()["key"]
        with closing(Late(served, "POST", KEYS, key, asked, JSON)) as late:
            admitted(served, key_id)
            assert admin.patch(f"{KEYS}/{key_id}", json=change).status_code == 200
            assert late.send_body() == outcome, change


def test_withheld_body_uses_no_model_that_was_taken_from_its_key(
    served: Served, admin: httpx.Client
) -> None:
    key_id, key = new_key(admin)
    with closing(Late(served, "POST", NATIVE, key, json.dumps(PROMPT).encode(), JSON)) as late:
        admitted(served, key_id)
        admin.patch(f"{KEYS}/{key_id}", json={"models": ["painter"]})
        assert late.send_body() == (403, "MODEL_NOT_ALLOWED")


def test_withheld_body_does_nothing_for_a_secret_or_token_that_has_ended(
    served: Served, admin: httpx.Client
) -> None:
    key_id, key = new_key(admin)
    token = httpx.post(served.url + "/api/v1/auth/token", headers={"x-api-key": key}).json()
    asked = json.dumps(PROMPT).encode()
    with closing(Late(served, "POST", NATIVE, token["access_token"], asked, JSON)) as late:
        admitted(served, key_id)
        admin.post("/api/v1/auth/revoke", json={"token": token["access_token"]})
        assert late.send_body() == (401, "INVALID_TOKEN")
    with closing(Late(served, "POST", NATIVE, key, asked, JSON)) as late:
        admitted(served, key_id)
        assert admin.post(f"{KEYS}/{key_id}/rotate", json={"grace": "0s"}).status_code == 200
        assert late.send_body() == (401, "EXPIRED_API_KEY")


def test_withheld_body_of_a_key_that_is_unchanged_is_charged_once(
    served: Served, admin: httpx.Client
) -> None:
    made = admin.post(KEYS, json={"name": "n", "quotas": {"daily": {"requests": 1}}}).json()
    with closing(
        Late(served, "POST", NATIVE, made["key"], json.dumps(PROMPT).encode(), JSON)
    ) as late:
        admitted(served, made["id"])
        assert late.send_body() == (200, "")
    usage = admin.get("/api/v1/usage", params={"key_id": made["id"]}).json()["data"]
    assert sum(row["requests"] for row in usage) == 1
