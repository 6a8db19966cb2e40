"""Session tokens over HTTP: a key in, a token out, good wherever a key is, until it is revoked."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from bitinglip.access.scopes import Scope
from bitinglip.access.tokens import LIFETIME
from bitinglip.audit.refusals import BURST
from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, error_of
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch, refusal

TOKEN, REVOKE, KEYS = "/api/v1/auth/token", "/api/v1/auth/revoke", "/api/v1/keys"
BACKGROUND = {"prefer": "respond-async"}
STALL = {**PROMPT, "prompt": "!stall"}


def make(client: httpx.Client, **body: Any) -> dict[str, Any]:
    made = client.post(TOKEN, json=body)
    assert made.status_code == 200, made.text
    found: dict[str, Any] = made.json()
    return found


def with_token(served: Served, token: dict[str, Any]) -> httpx.Client:
    headers = {"authorization": f"Bearer {token['access_token']}"}
    return httpx.Client(base_url=served.url, headers=headers, timeout=60)


@pytest.fixture
def bearer(served: Served, client: httpx.Client) -> Iterator[httpx.Client]:
    with with_token(served, make(client)) as found:
        yield found
    served.wait_idle()


def test_token_is_good_wherever_a_key_is(served: Served, client: httpx.Client) -> None:
    token = make(client, scopes=["inference:text"], ttl=60)
    assert set(token) == {"access_token", "token_type", "expires_in", "scopes"}
    assert (token["token_type"], token["expires_in"]) == ("bearer", 60)
    assert token["scopes"] == ["inference:text"]
    with with_token(served, token) as bearer:
        assert bearer.post(NATIVE, json=PROMPT).status_code == 200
        assert bearer.post(CHAT, json=MESSAGES).status_code == 200
        error_of(bearer.get("/api/v1/models"), 403, "INSUFFICIENT_SCOPE")
        accepted = bearer.post(NATIVE, json=PROMPT, headers=BACKGROUND).json()["task_id"]
        # What a token made belongs to its key.
        assert client.get(f"/api/v1/tasks/{accepted}").status_code == 200
        credential = {"authorization": bearer.headers["authorization"]}
        with open_watch(served.url, accepted, **credential) as watched:
            assert heard(watched)[1] == 1000
    own = {"x-api-key": token["access_token"]}
    assert httpx.post(served.url + NATIVE, json=PROMPT, headers=own).status_code == 200
    two = {**own, **served.headers("inference:text")}
    error_of(httpx.post(served.url + NATIVE, json=PROMPT, headers=two), 400, "INVALID_REQUEST")


def test_token_needs_no_body_and_has_all_scopes_of_its_key(client: httpx.Client) -> None:
    made = client.post(TOKEN)
    assert (made.json()["scopes"], made.json()["expires_in"]) == (["inference:text"], LIFETIME)
    assert made.headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"scopes": ["admin"]}, 403, "INSUFFICIENT_SCOPE", "scopes"),
        ({"scopes": ["inference:text", "models:read"]}, 403, "INSUFFICIENT_SCOPE", "scopes"),
        ({"scopes": []}, 400, "INVALID_REQUEST", "scopes"),
        ({"scopes": ["everything"]}, 400, "INVALID_REQUEST", "scopes"),
        ({"ttl": 0}, 400, "INVALID_REQUEST", "ttl"),
        ({"ttl": LIFETIME + 1}, 400, "INVALID_REQUEST", "ttl"),
        ({"ttl": 1.5}, 400, "INVALID_REQUEST", "ttl"),
        ({"tier": "operator"}, 400, "UNSUPPORTED_PARAMETER", "tier"),
        ({"sub": "x"}, 400, "UNSUPPORTED_PARAMETER", "sub"),
    ],
)
def test_token_request_that_is_invalid_is_refused_by_name(
    client: httpx.Client, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    assert error_of(client.post(TOKEN, json=body), status, code)["param"] == param


def test_token_makes_neither_tokens_nor_keys(
    served: Served, admin: httpx.Client, bearer: httpx.Client
) -> None:
    error_of(bearer.post(TOKEN), 403, "INSUFFICIENT_SCOPE")
    key = admin.post(KEYS, json={"name": "n"}).json()["id"]
    with with_token(served, make(admin)) as root:
        error_of(root.post(KEYS, json={"name": "n"}), 403, "INSUFFICIENT_SCOPE")
        error_of(root.patch(f"{KEYS}/{key}", json={"name": "m"}), 403, "INSUFFICIENT_SCOPE")
        error_of(root.post(f"{KEYS}/{key}/rotate"), 403, "INSUFFICIENT_SCOPE")
        assert root.get(KEYS).status_code == 200
        assert root.delete(f"{KEYS}/{key}").status_code == 204


def test_token_that_is_invalid_is_refused(served: Served, client: httpx.Client) -> None:
    good = make(client)["access_token"]
    for wrong in (good[:-3], good + "x", good[5:], "a.b.c", ".", "eyJhbGciOiJub25lIn0.e30."):
        answer = httpx.post(served.url + NATIVE, headers={"authorization": f"Bearer {wrong}"})
        error_of(answer, 401, "INVALID_TOKEN")
        assert answer.headers["www-authenticate"] == "Bearer"
    status, error = refusal(served.url, "task-x", authorization="Bearer a.b.c")
    assert (status, error["code"]) == (401, "INVALID_TOKEN")
    in_address = httpx.get(f"{served.url}/api/v1/models?next={good}")
    error_of(in_address, 400, "INVALID_REQUEST")


def test_token_that_is_revoked_ends_with_its_streams_tasks_and_websockets(
    served: Served, client: httpx.Client, bearer: httpx.Client
) -> None:
    task_id = bearer.post(NATIVE, json=STALL, headers=BACKGROUND).json()["task_id"]
    kept = client.post(NATIVE, json=STALL, headers=BACKGROUND).json()["task_id"]
    credential = {"authorization": bearer.headers["authorization"]}
    streaming = bearer.stream("POST", NATIVE, json={**STALL, "stream": True})
    with open_watch(served.url, kept, **credential) as watched, streaming as stream:
        assert client.post(REVOKE, json={"token": credential["authorization"][7:]}).is_success
        error_of(bearer.post(NATIVE, json=PROMPT), 401, "INVALID_TOKEN")
        assert heard(watched)[1] == 1008
        assert "event: cancelled" in list(stream.iter_lines())
    path = "/api/v1/tasks/"
    eventually(lambda: client.get(path + task_id).json()["status"] == "cancelled")
    assert client.get(path + kept).json()["status"] == "running"
    client.delete(path + kept)


def test_token_revokes_itself(client: httpx.Client, bearer: httpx.Client) -> None:
    ticket_for = client.post(NATIVE, json=STALL, headers=BACKGROUND).json()["task_id"]
    made = bearer.post("/api/v1/auth/ws-ticket", json={"task_id": ticket_for})
    revoked = bearer.post(REVOKE)
    assert (revoked.status_code, revoked.content) == (204, b"")
    error_of(bearer.post(REVOKE), 401, "INVALID_TOKEN")
    query = f"?ticket={made.json()['ticket']}"
    status, error = refusal(str(bearer.base_url).rstrip("/"), ticket_for, query=query)
    assert (status, error["code"]) == (401, "INVALID_TOKEN")
    client.delete(f"/api/v1/tasks/{ticket_for}")


def test_revocation_of_an_invalid_token_is_refused(client: httpx.Client) -> None:
    for body in (None, {"token": "a.b.c"}, {"token": ""}):
        refused = client.post(REVOKE, json=body)
        assert error_of(refused, 400, "INVALID_REQUEST")["param"] == "token"


def test_token_dies_with_its_key_and_its_narrowing_follows_the_key(
    served: Served, admin: httpx.Client
) -> None:
    record = admin.post(KEYS, json={"name": "n"}).json()
    with httpx.Client(base_url=served.url, headers={"x-api-key": record["key"]}) as owner:
        token = make(owner)
    with with_token(served, token) as bearer:
        for body, status, code in (
            ({"models": ["painter"]}, 403, "MODEL_NOT_ALLOWED"),
            ({"models": None, "ip_ranges": ["10.0.0.0/8"]}, 403, "IP_NOT_ALLOWED"),
            ({"ip_ranges": None, "scopes": ["models:read"]}, 403, "INSUFFICIENT_SCOPE"),
        ):
            assert admin.patch(f"{KEYS}/{record['id']}", json=body).status_code == 200
            error_of(bearer.post(NATIVE, json=PROMPT), status, code)
        admin.patch(f"{KEYS}/{record['id']}", json={"scopes": ["inference:text"]})
        old = admin.post(f"{KEYS}/{record['id']}/rotate", json={"grace": "1h"})
        assert "sunset" in bearer.post(NATIVE, json=PROMPT).headers
        assert old.status_code == 200
        admin.delete(f"{KEYS}/{record['id']}")
        error_of(bearer.post(NATIVE, json=PROMPT), 401, "INVALID_TOKEN")


def test_scope_of_a_token_is_required_by_every_route(served: Served, admin: httpx.Client) -> None:
    """A token of one scope that an admin made may do no more than a key of that scope."""
    for scope in (each for each in Scope if each is not Scope.ADMIN):
        with with_token(served, make(admin, scopes=[scope])) as bearer:
            error_of(bearer.get(KEYS), 403, "INSUFFICIENT_SCOPE")
            allowed = bearer.get("/api/v1/models").status_code
            assert allowed == (200 if scope is Scope.MODELS_READ else 403)


def test_revocation_survives_a_restart_and_tokens_do_too(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("tokens")
    with serve(root) as first:
        headers = first.headers("inference:text")
        with httpx.Client(base_url=first.url, headers=headers) as client:
            ended, kept = make(client), make(client)
            client.post(REVOKE, json={"token": ended["access_token"]})
        for file in first.home.root.rglob("*"):
            if file.is_file() and file.name not in ("secret.key", "server.lock"):
                assert ended["access_token"].encode() not in file.read_bytes()
    with serve(root) as again:
        with with_token(again, ended) as bearer:
            error_of(bearer.post(NATIVE, json=PROMPT), 401, "INVALID_TOKEN")
        with with_token(again, kept) as bearer:
            assert bearer.post(NATIVE, json=PROMPT).status_code == 200


def test_tokens_are_not_made_where_keys_are_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serve(tmp_path_factory.mktemp("off"), security={"require_api_key": False}) as served:
        error_of(httpx.post(served.url + TOKEN), 400, "INVALID_REQUEST")
        admin = served.headers("admin")
        assert httpx.post(served.url + TOKEN, headers=admin).status_code == 200


def test_ticket_works_where_keys_are_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serve(tmp_path_factory.mktemp("tickets"), security={"require_api_key": False}) as served:
        accepted = httpx.post(served.url + NATIVE, json=PROMPT, headers=BACKGROUND).json()
        body = {"task_id": accepted["task_id"]}
        ticket = httpx.post(f"{served.url}/api/v1/auth/ws-ticket", json=body).json()["ticket"]
        with open_watch(served.url, accepted["task_id"], query=f"?ticket={ticket}") as watched:
            assert heard(watched)[1] == 1000


def test_tokens_of_one_key_do_not_fill_the_audit_log(served: Served) -> None:
    """Any key can make them, so it could push out the entries that tell on it."""
    times = BURST // 2 + 20
    with (
        httpx.Client(base_url=served.url, headers=served.headers("models:read")) as client,
        httpx.Client(base_url=served.url, headers=served.headers("admin")) as admin,
    ):
        for _ in range(times):
            token = make(client)["access_token"]
            assert client.post(REVOKE, json={"token": token}).status_code == 204
        asked = {"actor": served.keys["models:read"].split("_")[2]}
        entered = admin.get("/api/v1/audit", params=asked).json()["total"]
    assert BURST <= entered < BURST + 20 < 2 * times
