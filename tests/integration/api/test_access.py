"""Authentication and authorisation: keys, scopes, and the routes that they open."""

from pathlib import Path

import httpx
from fastapi.routing import APIRoute

from bitinglip import api
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import ANY_KEY, declared_scope
from tests.support.api_server import EXPIRED, Served, serve
from tests.support.http_client import ask, error_of


def test_scope_is_declared_by_every_route_that_is_not_public(served: Served) -> None:
    for route in served.app.routes:
        path = getattr(route, "path", "")
        assert (declared_scope(route) is None) == (path in api.PUBLIC), path


def _routes(served: Served) -> list[tuple[str, str, Scope]]:
    found = []
    for route in served.app.routes:
        scope = declared_scope(route)
        if isinstance(route, APIRoute) and isinstance(scope, Scope) and not _has_own_rules(route):
            path = route.path_format.replace("{model_id}", "nobody")
            path = path.replace("{worker_id}", "w/0").replace("{key_id}", "x")
            found += [(method, path, scope) for method in route.methods or ()]
    return found


def _has_own_rules(route: APIRoute) -> bool:
    """Metrics depend on the address, tasks on their kind."""
    return route.path == "/metrics" or "tasks" in route.tags


def test_scope_is_required_by_every_route(served: Served, client: httpx.Client) -> None:
    for method, path, needed in _routes(served):
        del client.headers["authorization"]
        error_of(client.request(method, path), 401, "INVALID_API_KEY")
        for scope in Scope:
            client.headers.update(served.headers(scope))
            response = ask(client, method, path, content=b"{}")
            if scope not in (needed, Scope.ADMIN):
                error = error_of(response, 403, "INSUFFICIENT_SCOPE")
                assert error["details"] == {"required": needed}
            elif scope is needed and scope is not Scope.ADMIN:
                assert response.status_code not in (401, 403), (method, path)


def test_scope_is_not_needed_where_any_key_is_enough(served: Served, client: httpx.Client) -> None:
    routes = [
        (method, route.path)
        for route in served.app.routes
        if isinstance(route, APIRoute) and declared_scope(route) == ANY_KEY
        for method in route.methods or ()
    ]
    assert len(routes) == 4
    for method, path in routes:
        for scope in (str(each) for each in Scope):
            answer = client.request(method, path, headers=served.headers(scope))
            assert answer.status_code not in (401, 403), (path, scope)
        client.headers.pop("authorization", None)
        error_of(client.request(method, path), 401, "INVALID_API_KEY")
        client.headers.update(served.headers("admin"))


def test_scope_of_tasks_is_any_inference_scope(served: Served, client: httpx.Client) -> None:
    routes = [("GET", "/api/v1/tasks/x"), ("DELETE", "/api/v1/tasks/x"), ("GET", "/api/v1/tasks")]
    for method, path in [*routes, ("POST", "/api/v1/auth/ws-ticket")]:
        for scopes in ("models:read", "cluster:write,cluster:read"):
            refused = client.request(method, path, headers=served.headers(scopes))
            needed = error_of(refused, 403, "INSUFFICIENT_SCOPE")["details"]["any_of"]
            assert needed == ["inference:text", "inference:image", "inference:audio"]


def test_credential_is_taken_from_either_header(served: Served, client: httpx.Client) -> None:
    del client.headers["authorization"]
    path, key = "/api/v1/models", served.keys["models:read"]
    assert client.get(path, headers={"x-api-key": key}).status_code == 200
    assert client.get(path, headers={"authorization": f"bearer {key}"}).status_code == 200
    same = {"x-api-key": key, "authorization": f"Bearer {key}"}
    assert client.get(path, headers=same).status_code == 200
    two = {"x-api-key": key, **served.headers("admin")}
    error_of(client.get(path, headers=two), 400, "INVALID_REQUEST")


def test_credential_that_is_missing_unknown_or_expired_is_refused(
    served: Served, client: httpx.Client
) -> None:
    del client.headers["authorization"]
    path = "/api/v1/models"
    response = client.get(path)
    error_of(response, 401, "INVALID_API_KEY")
    assert response.headers["www-authenticate"] == "Bearer"
    error_of(client.get(path, headers={"authorization": "Basic x"}), 401, "INVALID_API_KEY")
    error_of(client.get(path, headers=served.headers(EXPIRED)), 401, "EXPIRED_API_KEY")


def test_api_keys_can_be_turned_off(tmp_path: Path) -> None:
    with serve(tmp_path, security={"require_api_key": False}) as served:
        assert httpx.get(f"{served.url}/api/v1/keys").status_code == 200
        bad = httpx.get(f"{served.url}/api/v1/keys", headers={"x-api-key": "k-typo"})
        assert bad.status_code == 401
