"""Models, workers, keys, health and metrics."""

import json

import httpx
import pytest

from tests.support.fake_services import Served
from tests.support.http_client import ADMIN, NATIVE, error_of


def test_models(client: httpx.Client) -> None:
    client.headers.update(ADMIN)
    body = client.get("/api/v1/models?limit=1&offset=1").json()
    assert (body["total"], body["limit"], body["offset"], len(body["data"])) == (3, 1, 1, 1)
    model = body["data"][0]
    assert (model["model_id"], model["type"], model["size"]) == ("org/deep", "text", "1.2 MB")
    assert model["supported_parameters"]["max_tokens"]["default"] == 512
    assert "prompt" not in model["supported_parameters"]
    images = client.get("/api/v1/models?type=image").json()["data"]
    assert [each["model_id"] for each in images] == ["painter"]
    assert client.get("/api/v1/models/org/deep").json()["model_id"] == "org/deep"
    assert client.get("/v1/models/org/deep").json()["id"] == "org/deep"
    assert client.get("/v1/models").json()["data"][0]["object"] == "model"


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
def test_bad_list_queries(client: httpx.Client, query: str, param: str) -> None:
    response = client.get(f"/api/v1/models?{query}", headers=ADMIN)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_loading_and_removing(served: Served, client: httpx.Client) -> None:
    client.headers.update(ADMIN)
    assert client.post("/api/v1/models/org/deep/load").json()["status"] == "ready"
    assert client.get("/api/v1/models?status=ready").json()["total"] == 1
    served.operations.busy = True
    error_of(client.delete("/api/v1/models/org/deep"), 409, "MODEL_IN_USE")
    served.operations.busy = False
    assert client.post("/api/v1/models/org/deep/unload").json()["status"] == "available"
    error_of(client.post("/api/v1/models/nope/load"), 404, "INVALID_MODEL")


def test_importing_and_removing(client: httpx.Client) -> None:
    client.headers.update(ADMIN)
    body = {"path": "/somewhere", "name": "new"}
    assert client.post("/api/v1/models/import", json=body).status_code == 201
    error_of(client.post("/api/v1/models/import", json=body), 409, "CONFLICT")
    assert client.delete("/api/v1/models/new").status_code == 204
    error_of(client.delete("/api/v1/models/new"), 404, "INVALID_MODEL")
    relative = client.post("/api/v1/models/import", json={**body, "path": "x"})
    assert error_of(relative, 400, "INVALID_REQUEST")["param"] == "path"
    proxied = client.post(
        "/api/v1/models/import", json=body, headers={"x-forwarded-for": "9.9.9.9"}
    )
    error_of(proxied, 403, "INSUFFICIENT_SCOPE")


def test_workers_and_cluster(served: Served, client: httpx.Client) -> None:
    client.headers.update(ADMIN)
    [worker] = client.get("/api/v1/workers").json()["data"]
    assert worker["id"] == "org/deep/0"
    assert worker["last_heartbeat"] is None
    assert client.post("/api/v1/workers/org/deep/0/restart").status_code == 202
    assert client.delete("/api/v1/workers/org/deep/0").status_code == 204
    assert served.operations.done == [("restart", "org/deep/0"), ("stop", "org/deep/0")]
    error_of(client.delete("/api/v1/workers/nope/0"), 404, "WORKER_NOT_FOUND")
    status = client.get("/api/v1/cluster/status").json()
    assert (status["in_flight"], status["queued"]) == (0, 0)
    assert {model["model_id"] for model in status["models"]} >= {"demo", "org/deep"}


def test_keys(client: httpx.Client) -> None:
    client.headers.update(ADMIN)
    body = {"name": "n", "scopes": ["inference:text"], "expires": "30d"}
    made = client.post("/api/v1/keys", json=body)
    assert made.status_code == 201
    record = made.json()
    assert record["key"] == "blk_secret"
    assert record["scopes"] == ["inference:text"]
    assert record["expires_at"]
    shown = client.get(f"/api/v1/keys/{record['id']}").json()
    assert "key" not in shown
    assert client.get("/api/v1/keys").json()["total"] == 1
    assert client.delete(f"/api/v1/keys/{record['id']}").status_code == 204
    error_of(client.get(f"/api/v1/keys/{record['id']}"), 404, "KEY_NOT_FOUND")
    refused = client.post("/api/v1/keys", json={"name": "n", "ip_ranges": []})
    assert error_of(refused, 400, "UNSUPPORTED_PARAMETER")["param"] == "ip_ranges"


def test_health(served: Served, client: httpx.Client) -> None:
    body = client.get("/health").json()
    assert body["status"] == "healthy"
    checks = ["database", "cache", "cluster_manager", "model_manager", "task_manager"]
    assert list(body["checks"]) == checks
    assert set(body["checks"]["database"]) == {"ok", "detail", "latency_ms"}
    served.operations.states["demo"] = "error"
    assert client.get("/health").json()["status"] == "degraded"
    served.operations.states.clear()
    served.database.broken = True
    response = client.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "unhealthy")
    assert client.get("/readyz").status_code == 503
    served.database.broken = False
    assert client.get("/readyz").status_code == 200


def test_draining_is_not_ready(served: Served, client: httpx.Client) -> None:
    served.dispatcher.draining = True
    assert client.get("/readyz").status_code == 503
    assert client.get("/livez").status_code == 200
    served.dispatcher.draining = False


def test_before_the_services_are_up(served: Served, client: httpx.Client) -> None:
    services = served.app.state.services
    del served.app.state.services
    try:
        assert client.get("/livez").status_code == 200
        for path in ("/readyz", "/health", "/metrics", "/api/v1/models"):
            error_of(client.get(path), 503, "OVERLOADED")
    finally:
        served.app.state.services = services


def test_metrics(client: httpx.Client) -> None:
    client.get("/api/v1/models/org/deep", headers=ADMIN)
    client.get("/some/path/nobody/knows")
    shown = client.get("/metrics").text
    assert 'endpoint="/api/v1/models/{model_id}"' in shown
    assert 'endpoint="_other",method="GET",status="404"' in shown
    assert "nobody" not in shown
    proxied = client.get("/metrics", headers={"x-forwarded-for": "1.2.3.4"})
    error_of(proxied, 403, "INSUFFICIENT_SCOPE")
    reader = {"x-forwarded-for": "1.2.3.4", "authorization": "Bearer k-cluster:read"}
    assert client.get("/metrics", headers=reader).status_code == 200


def test_documentation(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    operation = schema["paths"][NATIVE]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert "max_tokens" in body["properties"]
    assert "$defs" not in json.dumps(schema)
    assert set(operation["responses"]) == {"200", "default"}
    assert "422" not in schema["paths"]["/api/v1/models/{model_id}"]["get"]["responses"]
    assert schema["security"] == [{"bearer": []}, {"api_key": []}]
