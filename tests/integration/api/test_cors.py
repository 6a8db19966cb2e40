"""Pages of other origins: what browsers are told before a request, and with each answer."""

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT, error_of

PAGE = "https://app.example"
ASKED = {"origin": PAGE, "access-control-request-method": "POST"}


@pytest.fixture(scope="module")
def open_to_a_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = {"tiers": {"free": {"requests_per_minute": 1}}}
    root = tmp_path_factory.mktemp("cors")
    with serve(root, server={"cors_origins": [PAGE]}, limits=limits) as served:
        yield served


def test_preflight_is_answered_without_a_key(open_to_a_page: Served) -> None:
    asked = {**ASKED, "access-control-request-headers": "authorization,content-type"}
    answer = httpx.options(open_to_a_page.url + NATIVE, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "content-type", "cache-control", "prefer"} <= {*allowed}
    assert answer.headers["x-request-id"]


def test_preflight_allows_the_headers_that_official_clients_add(open_to_a_page: Served) -> None:
    """Send the headers of OpenAI's and Anthropic's packages in a browser."""
    added = [
        "x-stainless-os",
        "x-stainless-retry-count",
        "openai-organization",
        "anthropic-version",
        "anthropic-dangerous-direct-browser-access",
        "x-session-id",
    ]
    asked = {**ASKED, "access-control-request-headers": ",".join(["authorization", *added])}
    answer = httpx.options(open_to_a_page.url + "/v1/chat/completions", headers=asked)
    assert answer.status_code == 200
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", *added} <= set(allowed)
    assert len(allowed) == len(set(allowed))


def test_preflight_repeats_nothing_that_is_no_header(open_to_a_page: Served) -> None:
    wrong = ["a b", "x" * 65, "*", "", "a:b", "<b>", "%00"]
    many = [f"x-{number}" for number in range(200)]
    for names in (wrong, many):
        asked = {**ASKED, "access-control-request-headers": ", ".join(names)}
        answer = httpx.options(open_to_a_page.url + NATIVE, headers=asked)
        assert answer.status_code == 200
        allowed = answer.headers["access-control-allow-headers"].split(", ")
        assert not set(wrong) & set(allowed)
        assert len(allowed) < 60


def test_preflight_of_a_foreign_page_is_refused(open_to_a_page: Served) -> None:
    asked = {**ASKED, "origin": "https://evil.example"}
    answer = httpx.options(open_to_a_page.url + NATIVE, headers=asked)
    error_of(answer, 403, "INSUFFICIENT_SCOPE")
    assert "access-control-allow-origin" not in answer.headers


def test_preflight_is_nothing_special_without_origins(client: httpx.Client) -> None:
    answer = client.options(NATIVE, headers=ASKED)
    error_of(answer, 405, "INVALID_REQUEST")
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_cors_headers_are_on_errors_of_every_kind(open_to_a_page: Served) -> None:
    key = open_to_a_page.headers("inference:text")
    with httpx.Client(base_url=open_to_a_page.url, headers={"origin": PAGE}) as client:
        answers = [
            client.post(NATIVE, json=PROMPT),
            client.post(NATIVE, json=PROMPT, headers={"authorization": "Bearer wrong"}),
            client.post(NATIVE, json={**PROMPT, "model": "none"}, headers=key),
            client.post(NATIVE, json=PROMPT, headers=key),
            client.get("/api/v1/keys", headers=key),
            client.get("/nowhere", headers=key),
            client.put(NATIVE, headers=key),
            client.post(NATIVE, content=b"{}", headers={"content-encoding": "gzip"}),
            client.get("/livez", headers={"host": "evil.example"}),
        ]
    assert [answer.status_code for answer in answers] == [
        401,
        401,
        404,
        429,
        403,
        404,
        405,
        415,
        400,
    ]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == PAGE, answer.request.url
        assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
        assert answer.headers["vary"] == "Origin"


def test_cors_headers_are_on_unforeseen_errors(
    open_to_a_page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(open_to_a_page.services.keys, "authenticate", fail)
    key = open_to_a_page.headers("inference:text")
    answer = httpx.post(open_to_a_page.url + NATIVE, json=PROMPT, headers={**key, "origin": PAGE})
    error_of(answer, 500, "INTERNAL_ERROR")
    assert answer.headers["access-control-allow-origin"] == PAGE


def test_cors_headers_are_for_listed_origins_only(open_to_a_page: Served) -> None:
    answer = httpx.get(open_to_a_page.url + "/livez", headers={"origin": "https://evil.example"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nOrigin: %b\r\n" + b"X-Long: %b\r\n\r\n" % (b"x" * 40_000), 431),
        (b"GET / HTTP/1.1\r\nOrigin: %b\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    ],
)
def test_cors_headers_are_on_refusals_of_malformed_requests(
    open_to_a_page: Served, request_bytes: bytes, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", open_to_a_page.port), timeout=60) as sock:
        sock.sendall(request_bytes.replace(b"%b", PAGE.encode(), 1))
        head = sock.recv(65536).partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 %d" % status)
    for header in (
        b"access-control-allow-origin: " + PAGE.encode(),
        b"vary: origin",
        b"x-frame-options: deny",
        b"referrer-policy: no-referrer",
    ):
        assert header in head
