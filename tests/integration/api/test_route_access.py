"""Every route, HTTP and WebSocket, with every kind of caller: one door, and none beside it.

The routes are read from the application, so a new one is tested without a line here.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import httpx
import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute

from bitinglip import api
from bitinglip.access import credentials
from bitinglip.access.scopes import INFERENCE, Scope
from bitinglip.api.auth import ANY_KEY, declared_limits, declared_scope
from tests.support.api_server import EXPIRED, Served, serve
from tests.support.http_client import ask, error_of

#: what a program on another machine sends; /metrics is open to this one
ELSEWHERE = {"via": "1.1 somewhere"}
UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class Way(NamedTuple):
    """Describes one way in: a route with a method, or a WebSocket."""

    method: str
    path: str
    needs: frozenset[Scope] | None  #: any of these; None: any key is enough
    headers: dict[str, str]

    def ask(self, client: httpx.Client, headers: dict[str, str], query: str = "") -> httpx.Response:
        body = None if self.headers or self.method in ("GET", "DELETE") else b"{}"
        told = {**self.headers, **headers, **(ELSEWHERE if self.path == "/metrics" else {})}
        return ask(client, self.method, self.path + query, headers=told, content=body)


def _ways(served: Served) -> Iterator[Way]:
    for route in served.app.routes:
        scope = declared_scope(route)
        if scope is None:
            continue
        assert isinstance(route, APIRoute | APIWebSocketRoute)
        path = route.path_format
        path = path.replace("{worker_id}", "w/0")
        path = re.sub(r"\{\w+_id\}", "nobody", path)
        assert "{" not in path, path
        if isinstance(route, APIWebSocketRoute):
            yield Way("GET", path, frozenset(INFERENCE), UPGRADE)
            continue
        needs: frozenset[Scope] | None = None
        if any(part in path for part in ("/tasks", "/api/v1/files", "/ws-ticket")):
            needs = frozenset(INFERENCE)
        elif scope != ANY_KEY:
            needs = frozenset([scope])
        for method in route.methods or ():
            yield Way(method, path, needs, {})


@pytest.fixture(scope="module")
def ways(served: Served) -> list[Way]:
    return list(_ways(served))


@pytest.fixture
def stranger(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


def test_route_access_is_declared_for_every_route(served: Served, ways: list[Way]) -> None:
    assert len(ways) > 45
    assert sum(bool(way.headers) for way in ways) == 2  # the WebSocket, by two addresses
    for route in served.app.routes:
        path = getattr(route, "path", "")
        public = path in api.PUBLIC
        assert (declared_scope(route) is None) == public, path
        assert (declared_limits(route) is None) == public, path


def test_route_access_needs_a_valid_key(
    served: Served, stranger: httpx.Client, ways: list[Way]
) -> None:
    good = served.keys["admin"]
    bearers = [
        f"Bearer {credentials.make().text}",  # of the right form
        f"Bearer {good[:-1]}{'1' if good[-1] != '1' else '2'}",
        f"Bearer {good} x",
        "Bearer a.b.c",
        "Bearer",
        f"Basic {good}",
    ]
    for way in ways:
        error_of(way.ask(stranger, {}), 401, "INVALID_API_KEY")
        for bearer in bearers:
            refused = way.ask(stranger, {"authorization": bearer})
            assert refused.status_code == 401, (way, bearer)
            assert refused.headers["www-authenticate"] == "Bearer"
        error_of(way.ask(stranger, served.headers(EXPIRED)), 401, "EXPIRED_API_KEY")


def test_route_access_takes_one_credential_and_none_from_the_url(
    served: Served, stranger: httpx.Client, ways: list[Way]
) -> None:
    key = served.keys["admin"]
    both = {"authorization": f"Bearer {key}", "x-api-key": served.keys["models:read"]}
    for way in ways:
        error_of(way.ask(stranger, both), 400, "INVALID_REQUEST")
        error_of(way.ask(stranger, {}, f"?api_key={key}"), 400, "INVALID_REQUEST")
        error_of(way.ask(stranger, {}, f"?x={key}"), 400, "INVALID_REQUEST")


def test_route_access_needs_the_scope_of_every_route(
    served: Served, stranger: httpx.Client, ways: list[Way]
) -> None:
    for way in ways:
        for scope in Scope:
            answer = way.ask(stranger, served.headers(scope))
            if way.needs is None or scope in way.needs or scope is Scope.ADMIN:
                assert answer.status_code not in (401, 403), (way, scope)
            else:
                error_of(answer, 403, "INSUFFICIENT_SCOPE")


def test_route_access_is_refused_from_other_addresses(
    served: Served, stranger: httpx.Client, ways: list[Way]
) -> None:
    asked = {"name": "n", "scopes": ["admin"], "ip_ranges": ["192.0.2.0/24"]}
    made = stranger.post("/api/v1/keys", json=asked, headers=served.headers("admin"))
    key = {"authorization": f"Bearer {made.json()['key']}"}
    for way in ways:
        error_of(way.ask(stranger, key), 403, "IP_NOT_ALLOWED")


def test_route_access_ends_at_once_when_a_key_is_revoked(
    served: Served, stranger: httpx.Client, ways: list[Way]
) -> None:
    admin = served.headers("admin")
    made = stranger.post("/api/v1/keys", json={"name": "n", "scopes": ["admin"]}, headers=admin)
    key = {"authorization": f"Bearer {made.json()['key']}"}
    assert stranger.get("/api/v1/keys", headers=key).status_code == 200
    deleted = stranger.delete(f"/api/v1/keys/{made.json()['id']}", headers=admin)
    assert deleted.status_code == 204
    for way in ways:
        error_of(way.ask(stranger, key), 401, "INVALID_API_KEY")


def test_route_access_is_narrowed_to_the_models_of_a_key(
    served: Served, stranger: httpx.Client, ways: list[Way]
) -> None:
    """Bodies that name a model, and addresses that do."""
    asked = {"name": "n", "scopes": ["admin"], "models": ["mine-*"]}
    made = stranger.post("/api/v1/keys", json=asked, headers=served.headers("admin"))
    key = {"authorization": f"Bearer {made.json()['key']}"}
    bodies: dict[str, dict[str, object]] = {
        "/api/v1/inference/text-generation": {"prompt": "x"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "/v1/completions": {"prompt": "x"},
        "/api/v1/inference/image-generation": {"prompt": "x"},
        "/v1/images/generations": {"prompt": "x"},
        "/api/v1/inference/text-to-speech": {"text": "x"},
        "/v1/audio/speech": {"input": "x", "voice": "alloy"},
        "/api/v1/inference/embeddings": {"input": ["x"]},
        "/v1/embeddings": {"input": "x"},
        "/v1/rerank": {"query": "x", "documents": ["x"]},
        "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
        "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
        "/v1/responses": {"input": "x"},
        "/v1/responses/input_tokens": {"input": "x"},
    }
    forms = {"/v1/images/edits", "/api/v1/inference/transcription"}
    forms |= {"/v1/audio/transcriptions", "/v1/audio/translations"}
    named = [way for way in ways if way.needs and way.needs <= frozenset(INFERENCE)]
    posts = {way.path for way in named if way.method == "POST" and "ws-ticket" not in way.path}
    posts -= {"/v1/responses/nobody/cancel", "/v1/batches/nobody/cancel"}
    posts -= {"/v1/files", "/v1/batches"}  # the lines of a batch name models, each its own
    assert posts == bodies.keys() | forms, "a new route for inference needs a line here"
    for path, body in bodies.items():
        answer = stranger.post(path, json={**body, "model": "demo"}, headers=key)
        error_of(answer, 403, "MODEL_NOT_ALLOWED")
    for path in forms:
        files = {"image" if "images" in path else "file": ("x", b"x")}
        form = {"model": "demo", "prompt": "x"}
        error_of(stranger.post(path, data=form, files=files, headers=key), 403, "MODEL_NOT_ALLOWED")


def test_route_access_is_the_same_for_every_first_request(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Start a server that has had no request: no route is open before others."""
    began = datetime.now(UTC)
    with serve(tmp_path_factory.mktemp("fresh")) as served:
        with httpx.Client(base_url=served.url, timeout=60) as client:
            for way in _ways(served):
                error_of(way.ask(client, {}), 401, "INVALID_API_KEY")
        assert all(
            record.last_used_at is None or record.last_used_at < began
            for record in served.services.keys.list()
        )
