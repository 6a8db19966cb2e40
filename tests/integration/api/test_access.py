"""Which key may use which route."""

import httpx
from fastapi.routing import APIRoute

from bitinglip import api
from bitinglip.access.scopes import Scope
from bitinglip.settings import Settings
from tests.support.fake_services import Served, echo, serve
from tests.support.http_client import error_of


def test_every_route_declares_a_scope_or_is_public(served: Served) -> None:
    for route in served.app.routes:
        path = getattr(route, "path", "")
        assert (api.declared_scope(route) is None) == (path in api.PUBLIC), path


def _routes() -> list[tuple[str, str, Scope]]:
    found = []
    with serve(Settings(), echo) as served:
        for route in served.app.routes:
            scope = api.declared_scope(route)
            if isinstance(route, APIRoute) and scope and not _has_own_rules(route):
                path = route.path_format.replace("{model_id}", "nobody")
                path = path.replace("{worker_id}", "w/0").replace("{key_id}", "x")
                found += [(method, path, scope) for method in route.methods or ()]
    return found


def _has_own_rules(route: APIRoute) -> bool:
    """Metrics go by address, tasks by their kind."""
    return route.path == "/metrics" or "tasks" in route.tags


def test_scopes_of_all_routes(client: httpx.Client) -> None:
    for method, path, needed in _routes():
        del client.headers["authorization"]
        error_of(client.request(method, path), 401, "INVALID_API_KEY")
        for scope in Scope:
            client.headers["authorization"] = f"Bearer k-{scope}"
            response = client.request(method, path, content=b"{}")
            if scope not in (needed, Scope.ADMIN):
                error = error_of(response, 403, "INSUFFICIENT_SCOPE")
                assert error["details"] == {"required": needed}
            elif scope is needed and scope is not Scope.ADMIN:
                assert response.status_code not in (401, 403), (method, path)


def test_tasks_are_for_those_who_may_infer(client: httpx.Client) -> None:
    routes = [("GET", "/api/v1/tasks/x"), ("DELETE", "/api/v1/tasks/x"), ("GET", "/api/v1/tasks")]
    for method, path in [*routes, ("POST", "/api/v1/auth/ws-ticket")]:
        for key in ("k-models:read", "k-cluster:write,cluster:read"):
            refused = client.request(method, path, headers={"authorization": f"Bearer {key}"})
            needed = error_of(refused, 403, "INSUFFICIENT_SCOPE")["details"]["any_of"]
            assert needed == ["inference:text", "inference:image", "inference:audio"]


def test_credentials(client: httpx.Client) -> None:
    del client.headers["authorization"]
    path = "/api/v1/models"
    assert client.get(path, headers={"x-api-key": "k-models:read"}).status_code == 200
    assert client.get(path, headers={"authorization": "bearer k-models:read"}).status_code == 200
    same = {"x-api-key": "k-models:read", "authorization": "Bearer k-models:read"}
    assert client.get(path, headers=same).status_code == 200
    two = {"x-api-key": "k-models:read", "authorization": "Bearer k-admin"}
    error_of(client.get(path, headers=two), 400, "INVALID_REQUEST")
    response = client.get(path)
    error_of(response, 401, "INVALID_API_KEY")
    assert response.headers["www-authenticate"] == "Bearer"
    error_of(client.get(path, headers={"authorization": "Basic x"}), 401, "INVALID_API_KEY")
    expired = client.get(path, headers={"x-api-key": "k-expired"})
    error_of(expired, 401, "EXPIRED_API_KEY")


def test_keys_may_be_turned_off() -> None:
    settings = Settings.model_validate({"security": {"require_api_key": False}})
    with serve(settings, echo) as served:
        assert httpx.get(f"{served.url}/api/v1/keys").status_code == 200
        bad = httpx.get(f"{served.url}/api/v1/keys", headers={"x-api-key": "k-typo"})
        assert bad.status_code == 401
