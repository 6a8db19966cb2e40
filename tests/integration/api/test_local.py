"""Requests of the server's own machine, told from those that a reverse proxy passes on."""

import socket
from pathlib import Path

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import error_of
from tests.support.model_folders import llama


def test_metrics_are_open_on_loopback(served: Served) -> None:
    assert httpx.get(served.url + "/metrics").status_code == 200
    local = {"host": f"localhost:{served.port}"}
    assert httpx.get(served.url + "/metrics", headers=local).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "203.0.113.7"),
        ("forwarded", "for=203.0.113.7"),
        ("via", "1.1 proxy"),
        ("cf-connecting-ip", "203.0.113.7"),
        ("host", "box.lan"),
    ],
)
def test_metrics_need_a_scope_behind_a_proxy(
    served: Served, client: httpx.Client, header: tuple[str, str]
) -> None:
    passed_on = dict([header])
    error_of(client.get("/metrics", headers=passed_on), 403, "INSUFFICIENT_SCOPE")
    reader = {**passed_on, **served.headers("cluster:write,cluster:read")}
    assert client.get("/metrics", headers=reader).status_code == 200


def test_metrics_need_a_scope_over_http_1_0(served: Served) -> None:
    """A proxy that is told nothing but where to go sends this: no header, and an old version."""
    host = f"127.0.0.1:{served.port}"
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as sock:
        sock.sendall(f"GET /metrics HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    assert b" 401 " in answer.split(b"\r\n")[0]


def test_import_and_metrics_are_closed_on_loopback_that_is_not_trusted(tmp_path: Path) -> None:
    with serve(tmp_path, server={"trust_loopback": False}) as served:
        error_of(httpx.get(served.url + "/metrics"), 401, "INVALID_API_KEY")
        body = {"path": str(llama(tmp_path / "model")), "name": "new"}
        path, admin = served.url + "/api/v1/models/import", served.headers("admin")
        error_of(httpx.post(path, json=body, headers=admin), 403, "INSUFFICIENT_SCOPE")
