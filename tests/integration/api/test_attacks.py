"""Attacks on the door: paths, methods and credentials that should open nothing."""

import http.client
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event

from bitinglip import api
from tests.support.api_server import Served
from tests.support.http_client import error_of

_PATHS = (
    "//api/v1/keys",
    "/api//v1/keys",
    "/api/v1/keys/",
    "/api/v1/./keys",
    "/api/v1/x/../keys",
    "/livez/../api/v1/keys",
    "/livez/%2e%2e/api/v1/keys",
    "/api/v1/%2e%2e/v1/keys",
    "/api/v1/keys;x",
    "/api/v1/keys%2f",
    "/api%2fv1%2fkeys",
    "/api/v1%2fkeys",
    "/API/V1/KEYS",
    "/api/v1/Keys",
    "/api/v1/keys.",
    "/api/v1/keys%20",
    "/api\\v1\\keys",
    "/api/v1/keys%00",
    "/livez%00/api/v1/keys",
    "/livez;/api/v1/keys",
    "/docs/../api/v1/keys",
    "/docs/%2e%2e%2fapi/v1/keys",
    "http://evil.example/api/v1/keys",
)


@contextmanager
def statements() -> Iterator[list[str]]:
    """Collect all SQL that anything executes inside the block, with its values."""
    seen: list[str] = []

    def note(_c: Any, _cursor: Any, sql: str, values: Any, _context: Any, _many: bool) -> None:
        seen.append(f"{sql} {values}")

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_path_confusion_opens_nothing(served: Served, method: str) -> None:
    for path in _PATHS:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("host", f"127.0.0.1:{served.port}")
        connection.putheader("content-length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status in (400, 401, 404, 405), (path, answer.status)
        assert b"last_four" not in body


def test_method_confusion_opens_nothing(served: Served) -> None:
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")
    tricks = {"x-http-method-override": "GET", "x-http-method": "GET", "x-method-override": "GET"}
    paths = {getattr(route, "path_format", "") for route in served.app.routes} - set(api.PUBLIC)
    with httpx.Client(base_url=served.url, timeout=60) as client:
        for path in paths - {"", "/metrics"}:
            for method in methods:
                status = client.request(method, path.replace("{", "").replace("}", "")).status_code
                assert status in (401, 404, 405), (method, path, status)
        for path in paths - {"", "/metrics"}:
            status = client.post(path.replace("{", "").replace("}", ""), headers=tricks).status_code
            assert status in (401, 404, 405), (path, status)


@pytest.mark.parametrize(
    "credential",
    [
        b"' OR 1=1--",
        b"blk_live_' OR '1'='1",
        b"blk_live_" + b"a" * 12 + b"_" + b"b" * 49,
        b"\xff\xfe\xfd",
        "blk_live_ключ".encode(),
        b"x" * 20_000,
        b"eyJ" + b"A" * 20_000 + b".e30.x",
        b"." * 10_000,
        b"%00",
        b"{}",
        b"null",
        b"undefined",
        b"Bearer",
    ],
)
def test_credential_that_is_malformed_needs_no_sql(served: Served, credential: bytes) -> None:
    headers = {b"authorization": b"Bearer " + credential}
    with httpx.Client(base_url=served.url, timeout=60) as client, statements() as seen:
        began = time.monotonic()
        for path in ("/api/v1/models", "/api/v1/keys/x"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401, answer.text
            assert answer.json()["error"]["code"] in ("INVALID_API_KEY", "INVALID_TOKEN")
        assert time.monotonic() - began < 30
    shown = credential.decode("latin-1")
    assert not [each for each in seen if shown in each]


def test_key_id_that_is_sql_is_not_found(admin: httpx.Client) -> None:
    for name in ("' OR 1=1--", "x'; DROP TABLE api_keys;--", "%00", "a" * 200):
        for method in ("GET", "PATCH", "DELETE"):
            options: dict[str, Any] = {"json": {"name": "m"}} if method == "PATCH" else {}
            error_of(admin.request(method, f"/api/v1/keys/{name}", **options), 404, "KEY_NOT_FOUND")
    assert admin.get("/api/v1/keys").json()["total"] > 5


def test_key_checked_in_memory_needs_no_sql(served: Served, client: httpx.Client) -> None:
    token = client.post("/api/v1/auth/token").json()["access_token"]
    ask = "/v1/models/x"
    with statements() as seen:
        for credential in (served.keys["models:read"], token, "wrong"):
            httpx.get(served.url + ask, headers={"x-api-key": credential})
    assert not [each for each in seen if re.search(r"FROM (api_keys|revoked_tokens)\b", each)]


@pytest.mark.parametrize("part", ["a&", "a=b&", "%41=%42&", "%", "a" * 9000])
def test_query_that_is_too_much_is_refused_unread(client: httpx.Client, part: str) -> None:
    """Each parameter takes time, before any key is asked for."""
    query = part * (16_000 // len(part))
    for path in ("/livez", "/api/v1/models"):
        answer = client.get(f"{path}?{query}")
        error_of(answer, 400, "INVALID_REQUEST")
        assert "parameters" in answer.text
