"""The dashboard at /, and the stream of snapshots that it shows."""

import json
import re
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip import __version__
from bitinglip.api.admin import cluster
from bitinglip.api.dashboard import POLICY, read_files
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT, error_of
from tests.support.sse import iter_events
from tests.support.wait import eventually

EVENTS = "/api/v1/cluster/events"


@pytest.fixture(scope="module")
def page(served: Served) -> httpx.Response:
    return httpx.get(served.url + "/")


def test_dashboard_is_public_and_strict(served: Served, page: httpx.Response) -> None:
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == POLICY
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in POLICY
    assert "unsafe" not in POLICY
    assert page.headers["x-frame-options"] == "DENY"
    assert __version__ in page.text
    assert "{{" not in page.text
    assert 'content="key"' in page.text  # sign-in is asked for
    head = httpx.head(served.url + "/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == page.headers["etag"]


def test_dashboard_files_are_cached_for_good_and_the_page_is_asked_for(
    served: Served, page: httpx.Response
) -> None:
    assert page.headers["cache-control"] == "no-cache"
    again = httpx.get(served.url + "/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    with httpx.Client(base_url=served.url) as client:
        base = re.findall(r'"(dashboard/\w+)/js/main\.js"', page.text)[0]
        for name, file in read_files().items():
            if name == "index.html":
                continue
            found = client.get(f"/{base}/{name}")
            assert found.status_code == 200, name
            assert found.content == file.body
            assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert found.headers["content-security-policy"] == POLICY
        for address in re.findall(r'(?:src|href)="(dashboard/[^"]+)"', page.text):
            assert client.head(f"/{address}").status_code == 200, address


@pytest.mark.parametrize("name", ["../index.html", "%2e%2e/%2e%2e/app.py", "js", "index.html", ""])
def test_dashboard_serves_its_files_only(served: Served, page: httpx.Response, name: str) -> None:
    base = re.findall(r"(dashboard/\w+)/js/main", page.text)[0]
    error_of(httpx.get(f"{served.url}/{base}/{name}"), 404, "NOT_FOUND")
    error_of(httpx.get(f"{served.url}/dashboard/0000/js/main.js"), 404, "NOT_FOUND")


def _snapshots(client: httpx.Client) -> Generator[dict[str, Any], None, None]:
    with client.stream("GET", EVENTS) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        for name, data in iter_events(stream.iter_lines()):
            assert name == "snapshot"
            yield data


def _first(client: httpx.Client) -> dict[str, Any]:
    return next(_snapshots(client))


def test_snapshots_show_the_cluster_and_what_it_does(admin: httpx.Client) -> None:
    body = {**PROMPT, "prompt": "!crash"}
    assert admin.post(NATIVE, json=body).status_code == 502
    snapshots = _snapshots(admin)
    first, second = next(snapshots), next(snapshots)
    snapshots.close()
    assert second["at"] > first["at"]
    assert first["status"] == "running"
    assert {each["model_id"] for each in first["models"]} >= {"demo", "painter"}
    assert [each["tier"] for each in first["tiers"]] == ["operator", "enterprise", "pro", "free"]
    assert first["devices"][0]["memory_bytes"] > 0
    assert first["totals"]["jobs_failed"] >= 1
    assert first["last_minute"]["failed"] >= 1
    [error, *_] = first["errors"]
    assert (error["code"], error["model"]) == ("WORKER_CRASHED", "demo")
    assert error["message"] == "it died"


def test_snapshots_show_a_key_what_it_may_see(served: Served, admin: httpx.Client) -> None:
    assert admin.post(NATIVE, json={**PROMPT, "prompt": "!crash"}).status_code == 502
    asked = {"name": "n", "scopes": ["cluster:read"], "models": ["paint*"]}
    key = admin.post("/api/v1/keys", json=asked).json()["key"]
    with httpx.Client(base_url=served.url, headers={"x-api-key": key}, timeout=60) as client:
        narrowed = _first(client)
    assert {each["model_id"] for each in narrowed["models"]} == {"painter"}
    assert narrowed["errors"] == []
    with httpx.Client(base_url=served.url, headers=served.headers("cluster:read")) as client:
        shown = _first(client)["errors"]
    assert shown
    assert {each["message"] for each in shown} == {None}


def test_snapshots_of_a_key_are_bounded(
    served: Served, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are written in the same moment of each second, for a quarter of an hour."""
    monkeypatch.setattr(cluster, "_MOST_WATCHES", 3)
    asked = {"name": "n", "scopes": ["cluster:read"]}
    key = admin.post("/api/v1/keys", json=asked).json()["key"]
    with httpx.Client(base_url=served.url, headers={"x-api-key": key}, timeout=60) as client:
        with ExitStack() as stack:
            for _ in range(3):
                opened = stack.enter_context(client.stream("GET", EVENTS))
                assert opened.status_code == 200
            error_of(client.get(EVENTS), 429, "CONCURRENCY_LIMIT_EXCEEDED")
            assert _first(admin)["status"] == "running"
        eventually(lambda: served.services.watches.total == 0)
        assert _first(client)["status"] == "running"


def test_snapshots_end_with_the_key(served: Served, admin: httpx.Client) -> None:
    made = admin.post("/api/v1/keys", json={"name": "n", "scopes": ["cluster:read"]}).json()
    headers = {"x-api-key": made["key"]}
    with httpx.Client(base_url=served.url, headers=headers, timeout=60) as client:
        snapshots = _snapshots(client)
        next(snapshots)
        assert admin.delete(f"/api/v1/keys/{made['id']}").status_code == 204
        assert len(list(snapshots)) < 30  # the stream has ended by itself


def test_dashboard_can_be_turned_off_and_knows_whether_keys_are(tmp_path: Path) -> None:
    with serve(tmp_path / "a", dashboard={"enabled": False}) as served:
        error_of(httpx.get(served.url + "/"), 404, "NOT_FOUND")
    with serve(tmp_path / "b", security={"require_api_key": False}) as served:
        assert 'content="none"' in httpx.get(served.url + "/").text
        with httpx.Client(base_url=served.url) as client:
            assert json.dumps(_first(client))


def test_dashboard_page_names_the_modules_that_come_with_it(page: httpx.Response) -> None:
    """Files of single pages, and the library of the charts, come when they are needed."""
    named = set(re.findall(r'rel="modulepreload" href="dashboard/\w+/([^"]+)"', page.text))
    assert named >= {"js/main.js", "js/session.js", "js/ui/parts.js", "vendor/preact.mjs"}
    assert not any(name.startswith("js/pages/") for name in named)
    assert "vendor/uplot.mjs" not in named
