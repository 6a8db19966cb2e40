"""The edge: requests that are refused before any route, and headers of every response."""

import json
import re
import socket
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute

from tests.support.api_server import Served, serve
from tests.support.http_client import MAX_BODY, NATIVE, PROMPT, ask, error_of
from tests.support.raw_http import read_response


def test_body_that_is_not_valid_json_is_refused(client: httpx.Client) -> None:
    for raw in (b"", b"[]", b"{", b"\xff", b"[" * 5000, b'{"model":"demo","prompt":NaN}'):
        response = client.post(NATIVE, content=raw, headers={"content-type": "application/json"})
        error_of(response, 400, "INVALID_REQUEST")
    unknown = client.post(NATIVE, json={**PROMPT, "nope": 1})
    assert error_of(unknown, 400, "UNSUPPORTED_PARAMETER")["param"] == "nope"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_content_type_must_be_json(client: httpx.Client, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    response = client.post(NATIVE, content=json.dumps(PROMPT), headers=headers)
    error = error_of(response, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert (
        error["message"] == "The request's body must be JSON: send Content-Type: application/json."
    )


def test_content_encoding_is_refused(client: httpx.Client) -> None:
    response = client.post(NATIVE, json=PROMPT, headers={"content-encoding": "gzip"})
    error = error_of(response, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert error["message"] == "Send the body without a Content-Encoding."
    assert response.headers["accept-encoding"] == "identity"


def test_body_of_two_types_is_refused(client: httpx.Client) -> None:
    form = "multipart/form-data; boundary=x"  # whose bound is higher
    for kinds in (("application/json", form), (form, "application/json")):
        headers = [("content-type", kind) for kind in kinds]
        answer = client.post(NATIVE, content=json.dumps(PROMPT), headers=headers)
        assert error_of(answer, 400, "INVALID_REQUEST")["param"] == "Content-Type"


def test_body_over_the_limit_is_refused(client: httpx.Client) -> None:
    at_limit = json.dumps(PROMPT).encode().ljust(MAX_BODY)
    headers = {"content-type": "application/json"}
    assert client.post(NATIVE, content=at_limit, headers=headers).status_code == 200
    over = client.post(NATIVE, content=at_limit + b" ", headers=headers)
    error_of(over, 413, "PAYLOAD_TOO_LARGE")
    # The connection ends if the body was not here yet; the client goes on all the same.
    assert client.get("/livez").status_code == 200
    chunked = client.post(NATIVE, content=iter([b" " * 1000] * 200), headers=headers)
    error_of(chunked, 413, "PAYLOAD_TOO_LARGE")


def test_body_over_the_limit_is_refused_before_it_is_read(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as sock:
        sock.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\nxx"
            % NATIVE.encode()
        )
        answer = read_response(sock)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer.lower()


def test_content_length_and_chunks_exclude_each_other(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as sock:
        sock.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % NATIVE.encode()
        )
        assert sock.recv(65536).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1:99", "[::1]:80", "[0::1]", "box.lan", "BOX.lan:443"],
)
def test_host_that_is_configured_is_served(client: httpx.Client, host: str) -> None:
    assert client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "0.0.0.0",
        "localhost.evil.com",
        "",
        "box.lan.",
        "a:b:c",
        "[::1]evil",
        "[::1]evil:80",
        "localhost:evil.com",
        "localhost:80@evil.com",
        "localhost:70000",
        "localhost:0",
        "127.0.0.1:",
    ],
)
def test_host_that_is_foreign_is_refused(client: httpx.Client, host: str) -> None:
    error_of(client.get("/health", headers={"host": host}), 400, "INVALID_REQUEST")


def test_host_that_is_foreign_is_named_with_the_setting(client: httpx.Client) -> None:
    answer = client.get("/livez", headers={"host": "Host.Docker.Internal:8134"})
    error = error_of(answer, 400, "INVALID_REQUEST")
    assert error["param"] == "Host"
    assert "'host.docker.internal'" in error["message"]
    assert "server.allowed_hosts" in error["message"]
    malformed = client.get("/livez", headers={"host": "a b<script>"})
    assert "script" not in error_of(malformed, 400, "INVALID_REQUEST")["message"]


# ---- HTTP/1.0 ----------------------------------------------------------------------------------


def old_answer(served: Served, request: bytes) -> tuple[bytes, bytes]:
    """Return the head and the body of what a client of HTTP/1.0 is sent until the end."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as sock:
        sock.sendall(request)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), body


def test_http_1_0_needs_no_host_header(served: Served) -> None:
    """Send the request of a proxy's health check; HTTP/1.1 needs the header."""
    head, body = old_answer(served, b"GET /livez HTTP/1.0\r\n\r\n")
    assert head.startswith(b"http/1.1 200")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    assert json.loads(body)["status"]
    for request, status in (
        (b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.0\r\nHost: evil.example\r\n\r\n", b"400"),
        (b"OPTIONS /livez HTTP/1.0\r\nOrigin: https://evil.example\r\n\r\n", b"405"),
        (b"POST %b HTTP/1.0\r\nOrigin: https://evil.example\r\n\r\n" % NATIVE.encode(), b"403"),
    ):
        assert old_answer(served, request)[0].split(b" ")[1] == status, request


@pytest.mark.parametrize("path", [NATIVE, "/v1/completions"])
def test_http_1_0_gets_a_stream_without_chunks(served: Served, path: str) -> None:
    body = json.dumps({**PROMPT, "stream": True}).encode()
    request = (
        b"POST %b HTTP/1.0\r\nHost: localhost\r\nX-Api-Key: %b\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (path.encode(), served.keys["inference:text"].encode(), len(body), body)
    )
    head, stream = old_answer(served, request)
    assert head.startswith(b"http/1.1 200")
    assert b"transfer-encoding" not in head
    assert b"content-length" not in head
    assert b"connection: close" in head
    lines = stream.decode().splitlines()
    assert not [line for line in lines if line and not line.startswith(("event:", "data:", ":"))]
    assert "two" in stream.decode()
    assert stream.endswith(b"\n\n")


FOREIGN_PAGES: list[dict[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"},
    {"origin": "null"},
    {"origin": "http://[::1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("page", FOREIGN_PAGES)
def test_origin_that_is_foreign_may_not_change_anything(
    served: Served, client: httpx.Client, page: dict[str, str]
) -> None:
    before = len(served.workers.jobs)
    for method, path in [
        ("POST", NATIVE),
        ("POST", "/api/v1/models/demo/load"),
        ("DELETE", "/api/v1/tasks/x"),
        ("PATCH", "/api/v1/keys/x"),
        ("PUT", "/nope"),
    ]:
        # Text and forms are what a page can send without being asked first.
        headers = {"content-type": "text/plain", **page}
        refused = client.request(method, path, content=json.dumps(PROMPT), headers=headers)
        assert error_of(refused, 403, "INSUFFICIENT_SCOPE")["param"] == "Origin"
    assert len(served.workers.jobs) == before
    assert client.get("/health", headers=page).status_code == 200


def test_origin_of_our_own_may_use_the_api(served: Served, client: httpx.Client) -> None:
    for page in (
        {"origin": served.url, "sec-fetch-site": "same-origin"},
        {"origin": served.url},
        {"sec-fetch-site": "none"},
    ):
        assert client.post(NATIVE, json=PROMPT, headers=page).status_code == 200


def test_origin_in_the_settings_may_use_the_api(tmp_path: Path) -> None:
    page = {"origin": "https://app.example", "sec-fetch-site": "cross-site"}
    with serve(tmp_path, server={"cors_origins": ["https://app.example"]}) as served:
        headers = {**served.headers("inference:text"), **page}
        answer = httpx.post(served.url + NATIVE, json=PROMPT, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        asked = {**page, "access-control-request-method": "POST"}
        assert httpx.options(served.url + NATIVE, headers=asked).status_code == 200
        other = {**headers, "origin": "https://evil.example"}
        refused = httpx.post(served.url + NATIVE, json=PROMPT, headers=other)
        error_of(refused, 403, "INSUFFICIENT_SCOPE")


def test_origin_is_checked_where_keys_are_off(tmp_path: Path) -> None:
    with serve(tmp_path, security={"require_api_key": False}) as served:
        page = {"origin": "https://evil.example"}
        for path in ("/api/v1/models/demo/load", "/api/v1/workers/demo/0/restart"):
            refused = httpx.post(served.url + path, headers=page)
            error_of(refused, 403, "INSUFFICIENT_SCOPE")
        assert served.services.operations.status("demo") == "available"


#: what a browser may keep, and is the same for everybody
PAGES = ("/", "/dashboard/{files_digest}/{name:path}", "/docs/{name}")


def test_cache_control_is_private_on_every_route(
    served: Served, client: httpx.Client, admin: httpx.Client
) -> None:
    """No proxy on the way may keep any answer, of any caller."""
    answers = [client.get("/nope"), client.post(NATIVE, json=PROMPT)]
    answers += [client.post(NATIVE, json={**PROMPT, "stream": True})]
    answers += [client.post(NATIVE, json={**PROMPT, "model": "gpt"})]
    for route in served.app.routes:
        if isinstance(route, APIRoute) and route.path not in PAGES:
            path = re.sub(r"{\w+}", "nobody", route.path_format)
            for method in route.methods or ():
                answers.append(ask(admin, method, path))
                answers.append(httpx.request(method, served.url + path))
    assert len(answers) > 80
    for answer in answers:
        given = answer.headers.get_list("cache-control")
        assert given == ["private, no-store"], (answer.request.method, answer.url)


def test_credential_in_an_address_is_refused(client: httpx.Client) -> None:
    key = "blk_live_" + "a" * 12 + "_" + "b" * 49
    for query in (f"x={key}", "api_key=1", "token=x", "access_token", f"{key}=1"):
        error = error_of(client.get(f"/health?{query}"), 400, "INVALID_REQUEST")
        assert key not in error["message"]


def test_route_that_does_not_exist_is_refused(client: httpx.Client, admin: httpx.Client) -> None:
    error_of(client.get("/nope"), 404, "NOT_FOUND")
    error_of(admin.get("/api/v1/models/"), 404, "INVALID_MODEL")
    response = client.get(NATIVE)
    error_of(response, 405, "INVALID_REQUEST")
    assert response.headers["allow"] == "POST"


def test_request_id_is_the_client_s_if_it_is_valid(client: httpx.Client) -> None:
    given = client.get("/livez", headers={"x-request-id": "my.id-1"})
    assert given.headers["x-request-id"] == "my.id-1"
    for bad in (b"a b", b"x" * 129, "ä".encode(), b""):
        made = client.get("/livez", headers={b"x-request-id": bad}).headers["x-request-id"]
        assert made.startswith("req-")


def test_security_headers_are_on_every_response(client: httpx.Client) -> None:
    for path in ("/livez", "/nope"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


def test_unexpected_exception_is_a_500_without_details(
    served: Served, client: httpx.Client
) -> None:
    async def fail() -> None:
        raise RuntimeError("a secret")

    route = APIRoute("/fail", fail)
    served.app.router.routes.append(route)
    try:
        response = client.get("/fail")
        error = error_of(response, 500, "INTERNAL_ERROR")
        assert "secret" not in response.text
        assert error["details"] == {}
    finally:
        served.app.router.routes.remove(route)
