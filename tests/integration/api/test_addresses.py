"""Addresses of clients: trusted proxies, and addresses that are refused."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from bitinglip.api.proxies import Proxies, public_url
from bitinglip.api.request_context import RequestContext
from bitinglip.settings import Settings
from bitinglip.settings_loader import SettingsError, check_bind, load_settings
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT, error_of
from tests.support.wait import eventually

ELSEWHERE = {"x-forwarded-for": "198.51.100.7"}


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = {"trusted_proxies": ["127.0.0.1"], "allowed_hosts": ["ai.example"]}
    security = {"ip_deny": ["203.0.113.0/24", "2001:db8:bad::/48"]}
    limits = {"failed_logins_per_minute": 2}
    root = tmp_path_factory.mktemp("proxied")
    with serve(root, server=server, security=security, limits=limits) as served:
        yield served


@pytest.fixture
def through(proxied: Served) -> Iterator[httpx.Client]:
    headers = proxied.headers("admin")
    with httpx.Client(base_url=proxied.url, headers=headers, timeout=60) as client:
        yield client


def test_proxied_address_counts_for_the_ranges_of_a_key(
    proxied: Served, through: httpx.Client
) -> None:
    made = through.post("/api/v1/keys", json={"name": "n", "ip_ranges": ["198.51.100.0/24"]})
    key = {"authorization": f"Bearer {made.json()['key']}"}
    assert httpx.post(proxied.url + NATIVE, json=PROMPT, headers={**key, **ELSEWHERE}).is_success
    for told in ({}, {"x-forwarded-for": "192.0.2.1"}, {"x-forwarded-for": "unknown"}):
        refused = httpx.post(proxied.url + NATIVE, json=PROMPT, headers={**key, **told})
        error_of(refused, 403, "IP_NOT_ALLOWED")


def test_proxied_address_counts_for_wrong_keys_and_is_audited(
    proxied: Served, through: httpx.Client
) -> None:
    wrong = {"authorization": "Bearer wrong", "x-forwarded-for": "198.51.100.99"}
    codes = [httpx.get(proxied.url + "/api/v1/models", headers=wrong).status_code for _ in range(3)]
    assert codes == [401, 401, 429]
    other = {**wrong, "x-forwarded-for": "198.51.100.98"}
    assert httpx.get(proxied.url + "/api/v1/models", headers=other).status_code == 401
    through.post("/api/v1/keys", json={"name": "audited"}, headers=ELSEWHERE)
    assert "198.51.100.7" in through.get("/api/v1/audit").text


def test_proxied_host_and_prefix_are_in_links(through: httpx.Client) -> None:
    told = {"x-forwarded-proto": "https", "x-forwarded-host": "ai.example"}
    task = through.post(
        NATIVE,
        json={**PROMPT, "async": True},
        headers={**told, "x-forwarded-prefix": "/llm"},
    )
    assert task.headers["location"] == f"/llm/api/v1/tasks/{task.json()['task_id']}"
    foreign = through.get("/livez", headers={"x-forwarded-host": "evil.example"})
    error_of(foreign, 400, "INVALID_REQUEST")


@pytest.mark.parametrize("sent", [NATIVE, "/llm" + NATIVE])
def test_proxied_prefix_may_be_left_in_the_path(through: httpx.Client, sent: str) -> None:
    answer = through.post(sent, json=PROMPT, headers={"x-forwarded-prefix": "/llm"})
    assert answer.status_code == 200
    tasks = sent.replace(NATIVE, "/api/v1/tasks")
    assert through.get(tasks, headers={"x-forwarded-prefix": "/llm"}).status_code == 200


def test_proxied_request_is_not_taken_for_one_of_this_machine(proxied: Served) -> None:
    assert httpx.get(proxied.url + "/metrics").status_code == 200
    told = {"x-forwarded-for": "127.0.0.1"}
    assert httpx.get(proxied.url + "/metrics", headers=told).status_code == 401


def test_address_that_is_denied_is_refused_before_anything_else_and_audited(
    proxied: Served, through: httpx.Client
) -> None:
    for address in ("203.0.113.5", "::ffff:203.0.113.5", "2001:db8:bad::1"):
        refused = httpx.get(proxied.url + "/livez", headers={"x-forwarded-for": address})
        error_of(refused, 403, "IP_NOT_ALLOWED")

    def audited() -> str:
        return through.get("/api/v1/audit", params={"action": "auth.refused"}).text

    # Other tests' refusals have the same code, so the address is waited for.
    eventually(lambda: "203.0.113." in audited())
    assert "IP_NOT_ALLOWED" in audited()
    allowed = httpx.get(proxied.url + "/livez", headers={"x-forwarded-for": "203.0.114.5"})
    assert allowed.status_code == 200


def test_proxy_that_is_not_trusted_has_its_headers_ignored(served: Served) -> None:
    told = {**ELSEWHERE, "x-forwarded-host": "evil.example", "x-forwarded-prefix": "nonsense"}
    assert httpx.get(served.url + "/livez", headers=told).status_code == 200


def test_address_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    with serve(tmp_path, security={"ip_allow": ["10.0.0.0/8"]}) as served:
        error_of(httpx.get(served.url + "/livez"), 403, "IP_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("setting", "told", "expected"),
    [
        ("https://ai.example/llm/", {}, "https://ai.example/llm"),
        (None, {}, "http://localhost:8080"),
        (
            None,
            {b"x-forwarded-proto": b"https", b"x-forwarded-prefix": b"/llm"},
            "https://localhost:8080/llm",
        ),
    ],
)
def test_public_url_is_the_setting_or_what_the_request_says(
    setting: str | None, told: dict[bytes, bytes], expected: str
) -> None:
    settings = Settings.model_validate({"server": {"public_url": setting}})
    headers = [(b"host", b"localhost:8080"), *told.items()]
    scope = {
        "type": "http",
        "client": ("10.0.0.1", 5),
        "scheme": "http",
        "root_path": "",
        "path": "/v1/images/generations",
        "query_string": b"",
        "headers": headers,
    }
    services: Any = SimpleNamespace(settings=settings)
    RequestContext("id", services, dict(headers)).attach(scope)
    Proxies(["10.0.0.1"]).apply(scope)
    assert public_url(Request(scope)) == expected


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("server.trusted_proxies", "[0.0.0.0/0]"),
        ("server.trusted_proxies", "['::/0']"),
        ("server.trusted_proxies", "['*']"),
        ("server.trusted_proxies", "[proxy.example]"),
        ("server.cors_origins", "[app.example]"),
        ("server.cors_origins", "['https://app.example/']"),
        ("server.cors_origins", "['null']"),
        ("server.public_url", "ai.example"),
        ("server.allowed_hosts", "['*.example.com']"),
        ("server.public_url", "'https://ai.example/?x'"),
        ("security.ip_allow", "[10.0.0.1/8]"),
        ("security.ip_deny", "[nobody]"),
    ],
)
def test_setting_that_is_unsafe_or_invalid_is_refused_by_its_name(
    tmp_path: Path, setting: str, wrong: str
) -> None:
    with pytest.raises(SettingsError, match=setting):
        load_settings(home=tmp_path, environ={}, sets=[f"{setting}={wrong}"])


def test_setting_that_opens_the_server_to_every_page_needs_keys() -> None:
    server = {"cors_origins": ["*"]}
    security = {"require_api_key": False}
    with pytest.raises(SettingsError, match=r"server\.cors_origins"):
        check_bind(Settings.model_validate({"server": server, "security": security}))
    security["allow_insecure"] = True
    check_bind(Settings.model_validate({"server": server, "security": security}))


def test_setting_that_takes_every_host_name_needs_keys() -> None:
    server, security = {"allowed_hosts": ["*"]}, {"require_api_key": False}
    with pytest.raises(SettingsError, match=r"server\.allowed_hosts"):
        check_bind(Settings.model_validate({"server": server, "security": security}))
    check_bind(Settings.model_validate({"server": server}))
    security["allow_insecure"] = True
    check_bind(Settings.model_validate({"server": server, "security": security}))
