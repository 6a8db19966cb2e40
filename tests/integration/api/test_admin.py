"""Operations over HTTP: models, workers, keys, health, metrics and documentation."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT, error_of
from tests.support.model_folders import llama
from tests.support.other_program import change
from tests.support.raw_http import raw_request
from tests.support.wait import eventually


@contextmanager
def running_job(served: Served, model: str) -> Iterator[None]:
    """Keep a job of this model running inside the block."""
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.sendall(raw_request(served, NATIVE, {"model": model, "prompt": "!wait"}))
        eventually(lambda: served.services.dispatcher.running(model) == 1)
        yield
    served.wait_idle()


def test_models_are_listed_on_both_surfaces(admin: httpx.Client) -> None:
    body = admin.get("/api/v1/models?limit=1&offset=1").json()
    assert (body["total"], body["limit"], body["offset"], len(body["data"])) == (3, 1, 1, 1)
    model = body["data"][0]
    assert (model["model_id"], model["type"], model["size"]) == ("org/deep", "text", "2.1 kB")
    assert model["supported_parameters"]["max_tokens"]["default"] == 512
    assert "prompt" not in model["supported_parameters"]
    images = admin.get("/api/v1/models?type=image").json()["data"]
    assert [each["model_id"] for each in images] == ["painter"]
    shown = admin.get("/api/v1/models/org/deep").json()
    assert (shown["model_id"], shown["kind"], shown["task"]) == (
        "org/deep",
        "text",
        "text-generation",
    )
    assert shown.keys() - model.keys() == {"needs_by_dtype", "adapters", "quantizations"}
    painter = admin.get("/api/v1/models/painter").json()["needs_by_dtype"]
    assert painter["float32"] > painter["bfloat16"] == painter["float16"] > 0
    fit = admin.get("/api/v1/models/painter/fit").json()
    assert fit["needs_by_dtype"] == painter
    assert admin.get("/v1/models/org/deep").json()["id"] == "org/deep"
    assert admin.get("/v1/models").json()["data"][0]["object"] == "model"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("offset=-1", "offset"),
        ("type=video", "type"),
        ("order=asc", "order"),
    ],
)
def test_list_query_that_is_not_valid_is_refused(
    admin: httpx.Client, query: str, param: str
) -> None:
    response = admin.get(f"/api/v1/models?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_load_and_unload_change_the_status_of_a_model(served: Served, admin: httpx.Client) -> None:
    loaded = admin.post("/api/v1/models/org/deep/load").json()
    assert loaded["status"] == "ready"
    assert list(loaded["load_seconds"]) == ["cache"], "it reads no files"
    assert admin.get("/api/v1/models?status=ready").json()["total"] == 1
    with running_job(served, "org/deep"):
        error_of(admin.delete("/api/v1/models/org/deep"), 409, "MODEL_IN_USE")
    assert admin.post("/api/v1/models/org/deep/unload").json()["status"] == "available"
    error_of(admin.post("/api/v1/models/nope/load"), 404, "INVALID_MODEL")


def test_import_takes_a_folder_and_remove_deletes_the_model(
    admin: httpx.Client, tmp_path: Path
) -> None:
    body = {"path": str(llama(tmp_path / "model")), "name": "new"}
    assert admin.post("/api/v1/models/import", json=body).status_code == 201
    error_of(admin.post("/api/v1/models/import", json=body), 409, "CONFLICT")
    assert admin.delete("/api/v1/models/new").status_code == 204
    error_of(admin.delete("/api/v1/models/new"), 404, "INVALID_MODEL")
    relative = admin.post("/api/v1/models/import", json={**body, "path": "x"})
    assert error_of(relative, 400, "INVALID_REQUEST")["param"] == "path"
    proxied = admin.post("/api/v1/models/import", json=body, headers={"x-forwarded-for": "9.9.9.9"})
    error_of(proxied, 403, "INSUFFICIENT_SCOPE")


def test_workers_are_restarted_and_stopped(admin: httpx.Client) -> None:
    admin.post("/api/v1/models/org/deep/load")

    def worker() -> dict[str, Any]:
        [found] = admin.get("/api/v1/workers").json()["data"]
        return dict(found)

    assert (worker()["id"], worker()["state"]) == ("org/deep/0", "ready")
    eventually(lambda: worker()["last_heartbeat"] is not None)
    assert admin.post("/api/v1/workers/org/deep/0/restart").status_code == 202
    eventually(lambda: admin.get("/api/v1/models/org/deep").json()["status"] == "ready")
    assert admin.delete("/api/v1/workers/org/deep/0").status_code == 204
    assert admin.get("/api/v1/workers").json()["data"] == []
    error_of(admin.delete("/api/v1/workers/nope/0"), 404, "WORKER_NOT_FOUND")


def test_cluster_status_shows_models_devices_and_counts(admin: httpx.Client) -> None:
    status = admin.get("/api/v1/cluster/status").json()
    assert (status["in_flight"], status["queued"]) == (0, 0)
    assert {model["model_id"] for model in status["models"]} == {"demo", "org/deep", "painter"}
    [device] = [each for each in status["devices"] if each["id"] == "cpu"]
    assert device["free_bytes"] <= device["memory_bytes"]


def test_reservations_name_worker_model_and_device(admin: httpx.Client) -> None:
    admin.post("/api/v1/models/demo/load")
    status = admin.get("/api/v1/cluster/status").json()
    [held] = [each for each in status["reservations"] if each["model"] == "demo"]
    assert (held["worker"], held["device"]) == ("demo/0", "cpu")
    assert held["bytes"] > 0


def test_key_is_created_shown_once_and_revoked(admin: httpx.Client) -> None:
    body = {"name": "n", "scopes": ["inference:text"], "expires": "30d"}
    made = admin.post("/api/v1/keys", json=body)
    assert made.status_code == 201
    record = made.json()
    assert record["key"].startswith("blk_")
    assert record["scopes"] == ["inference:text"]
    assert record["expires_at"]
    before = admin.get("/api/v1/keys").json()
    assert record["id"] in {each["id"] for each in before["data"]}
    assert record["key"] not in admin.get(f"/api/v1/keys/{record['id']}").text
    assert admin.delete(f"/api/v1/keys/{record['id']}").status_code == 204
    assert admin.get(f"/api/v1/keys/{record['id']}").json()["revoked_at"]
    error_of(admin.get("/api/v1/keys/nope"), 404, "KEY_NOT_FOUND")
    refused = admin.post("/api/v1/keys", json={"name": "n", "quotas": {"words": 1}})
    assert error_of(refused, 400, "UNSUPPORTED_PARAMETER")["param"] == "quotas.words"


def test_health_is_degraded_while_a_model_is_broken(served: Served, admin: httpx.Client) -> None:
    body = admin.get("/health").json()
    assert body["status"] == "healthy"
    checks = ["database", "cache", "redis", "cluster_manager", "model_manager"]
    checks += ["task_manager", "guard", "devices"]
    assert list(body["checks"]) == checks
    assert set(body["checks"]["database"]) == {"ok", "detail", "latency_ms"}
    served.workers.broken_models.add("painter")
    error_of(admin.post("/api/v1/models/painter/load"), 502, "MODEL_LOAD_FAILED")
    assert admin.get("/health").json()["status"] == "degraded"
    served.workers.broken_models.clear()
    assert admin.post("/api/v1/models/painter/load").json()["status"] == "ready"
    assert admin.get("/health").json()["status"] == "healthy"


def test_health_is_unhealthy_while_the_database_fails(served: Served, client: httpx.Client) -> None:
    change(served.home.database, "ALTER TABLE alembic_version RENAME TO lost")
    response = client.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "unhealthy")
    assert client.get("/readyz").status_code == 503
    change(served.home.database, "ALTER TABLE lost RENAME TO alembic_version")
    assert client.get("/readyz").status_code == 200


def test_draining_server_is_alive_but_not_ready(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        drain = served.services.dispatcher.drain(5)
        asyncio.run_coroutine_threadsafe(drain, served.loop).result(60)
        assert httpx.get(served.url + "/readyz").status_code == 503
        assert httpx.get(served.url + "/livez").status_code == 200
        answer = httpx.post(
            served.url + NATIVE, json=PROMPT, headers=served.headers("inference:text")
        )
        error_of(answer, 503, "SHUTTING_DOWN")


def test_starting_server_is_alive_but_not_ready(served: Served, client: httpx.Client) -> None:
    del served.app.state.services
    try:
        assert client.get("/livez").status_code == 200
        for path in ("/readyz", "/health", "/metrics", "/api/v1/models"):
            error_of(client.get(path), 503, "OVERLOADED")
    finally:
        served.app.state.services = served.services


def test_metrics_count_by_route_and_are_open_on_loopback_only(
    served: Served, client: httpx.Client, admin: httpx.Client
) -> None:
    admin.get("/api/v1/models/org/deep")
    client.get("/some/path/nobody/knows")
    shown = client.get("/metrics").text
    assert 'endpoint="/api/v1/models/{model_id}"' in shown
    assert 'endpoint="_other",method="GET",status="404"' in shown
    assert "nobody" not in shown
    proxied = {"x-forwarded-for": "1.2.3.4"}
    error_of(client.get("/metrics", headers=proxied), 403, "INSUFFICIENT_SCOPE")
    reader = {**proxied, **served.headers("cluster:write,cluster:read")}
    assert client.get("/metrics", headers=reader).status_code == 200
