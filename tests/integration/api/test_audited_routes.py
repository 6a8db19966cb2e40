"""Every route that changes something is audited: a walk over all of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import BaseRoute

from bitinglip.access import credentials
from bitinglip.access.scopes import INFERENCE
from bitinglip.api.audited import declared_action
from bitinglip.api.auth import declared_scope
from bitinglip.audit.entry import Action
from model_store.manifest import FILES
from tests.support.api_server import Served, serve
from tests.support.audit_log import on_disk, verdict
from tests.support.model_folders import llama

KEYS = "/api/v1/keys"
AGENT = "test/1"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # A hub that does not answer: downloads are accepted, and fail.
    with serve(tmp_path_factory.mktemp("audit"), hub={"endpoint": "http://127.0.0.1:9"}) as served:
        yield served


@pytest.fixture(scope="module")
def admin(served: Served) -> Iterator[httpx.Client]:
    headers = {**served.headers("admin"), "user-agent": AGENT}
    with httpx.Client(base_url=served.url, headers=headers, timeout=60) as client:
        yield client


class Routes:
    """Holds requests that succeed, by method and path of the route that they are for."""

    def __init__(self, served: Served, admin: httpx.Client, folder: Path) -> None:
        self._served, self._admin, self._folder = served, admin, folder

    def key(self) -> str:
        return str(self._admin.post(KEYS, json={"name": "one"}).json()["id"])

    def worker(self) -> str:
        self._admin.post("/api/v1/models/demo/load")
        rows = self._admin.get("/api/v1/workers").json()["data"]
        return str(next(row["id"] for row in rows if row["model"] == "demo"))

    def model(self) -> str:
        body = {"path": str(llama(self._folder / "m")), "name": f"m{id(object())}"}
        self._admin.post("/api/v1/models/import", json=body).raise_for_status()
        return body["name"]

    def download(self) -> str:
        body = {"model_name": f"org/d{id(object())}"}
        return str(self._admin.post("/api/v1/models/download", json=body).json()["id"])

    def of_the_hub(self) -> str:
        """Return a model that was pulled."""
        store, name = self._served.services.store, f"h{id(object())}"
        with store.draft() as folder:
            llama(folder / FILES)
            store.finish(folder, name, source="hub:org/pulled")
        return name

    def token(self) -> str:
        return str(self._admin.post("/api/v1/auth/token").json()["access_token"])

    def request_for(self, method: str, path: str) -> tuple[str, Any]:
        """Return the path to ask, and the body."""
        make: dict[tuple[str, str], Callable[[], tuple[str, Any]]] = {
            ("POST", KEYS): lambda: (KEYS, {"name": "new"}),
            ("PATCH", f"{KEYS}/{{key_id}}"): lambda: (f"{KEYS}/{self.key()}", {"tier": "pro"}),
            ("POST", f"{KEYS}/{{key_id}}/rotate"): lambda: (f"{KEYS}/{self.key()}/rotate", None),
            ("DELETE", f"{KEYS}/{{key_id}}"): lambda: (f"{KEYS}/{self.key()}", None),
            ("POST", "/api/v1/auth/token"): lambda: ("/api/v1/auth/token", None),
            ("POST", "/api/v1/auth/revoke"): lambda: (
                "/api/v1/auth/revoke",
                {"token": self.token()},
            ),
            ("POST", "/api/v1/models/import"): lambda: (
                "/api/v1/models/import",
                {"path": str(llama(self._folder / "imported")), "name": "imported"},
            ),
            ("POST", "/api/v1/models/download"): lambda: (
                "/api/v1/models/download",
                {"model_name": "org/downloaded"},
            ),
            ("DELETE", "/api/v1/models/downloads/{download_id}"): lambda: (
                f"/api/v1/models/downloads/{self.download()}",
                None,
            ),
            ("POST", "/api/v1/models/gc"): lambda: ("/api/v1/models/gc", None),
            ("PATCH", "/api/v1/models/{model_id:path}"): lambda: (
                "/api/v1/models/demo",
                {"pinned": True},
            ),
            ("POST", "/api/v1/models/{model_id:path}/verify"): lambda: (
                "/api/v1/models/demo/verify",
                None,
            ),
            ("POST", "/api/v1/models/{model_id:path}/update"): lambda: (
                f"/api/v1/models/{self.of_the_hub()}/update",
                None,
            ),
            ("POST", "/api/v1/models/{model_id:path}/load"): lambda: (
                "/api/v1/models/demo/load",
                None,
            ),
            ("POST", "/api/v1/models/{model_id:path}/unload"): lambda: (
                "/api/v1/models/org/deep/unload",
                None,
            ),
            ("DELETE", "/api/v1/models/{model_id:path}"): lambda: (
                f"/api/v1/models/{self.model()}",
                None,
            ),
            ("DELETE", "/api/v1/cache"): lambda: ("/api/v1/cache", None),
            ("POST", "/api/v1/workers/{worker_id:path}/restart"): lambda: (
                f"/api/v1/workers/{self.worker()}/restart",
                None,
            ),
            ("POST", "/api/v1/workers/{worker_id:path}/drain"): lambda: (
                f"/api/v1/workers/{self.worker()}/drain",
                None,
            ),
            ("DELETE", "/api/v1/workers/{worker_id:path}"): lambda: (
                f"/api/v1/workers/{self.worker()}",
                None,
            ),
        }
        assert (method, path) in make, f"{method} {path}: is it audited? Add a request for it here"
        return make[method, path]()


#: routes that change something and are not audited, with the reason
NOT_AUDITED: dict[tuple[str, str], str] = {}


def unsafe(routes: list[BaseRoute]) -> Iterator[tuple[str, str, BaseRoute]]:
    for route in routes:
        for method in getattr(route, "methods", None) or ():
            if method not in ("GET", "HEAD", "OPTIONS"):
                yield method, str(getattr(route, "path", "")), route


def test_audit_covers_every_route_that_changes_something(
    served: Served, admin: httpx.Client, tmp_path: Path
) -> None:
    routes = Routes(served, admin, tmp_path)
    seen: set[Action] = set()
    for number, (method, path, route) in enumerate(unsafe(served.app.routes)):
        if declared_scope(route) in INFERENCE:
            continue  # what a key computes, and its own tasks: usage counts that
        if (method, path) in NOT_AUDITED:
            continue
        action = declared_action(route)
        assert action is not None, f"{method} {path} is neither audited nor exempt"
        asked, body = routes.request_for(method, path)
        request_id = f"walk-{number}"
        answer = admin.request(method, asked, json=body, headers={"x-request-id": request_id})
        assert answer.is_success, (method, path, answer.text)
        (row,) = on_disk(served.home, request_id=request_id)
        assert (row["action"], row["outcome"]) == (action, "ok")
        assert (row["actor_name"], row["address"]) == ("admin", "127.0.0.1")
        assert row["actor"] == credentials.parse(served.keys["admin"])
        assert row["user_agent"] == AGENT
        assert row["target"] != ""
        seen.add(action)
    assert len(seen) >= 13
    assert verdict(served.home)[0]
