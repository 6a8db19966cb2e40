"""``doctor`` says whether the servers behind models answer, take the key and have the model."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bitinglip.settings import Settings
from cli.checks.findings import Finding
from cli.checks.upstreams import upstreams

KEY = "sk-of-another-server"


class _Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.headers["Authorization"] == f"Bearer {KEY}"
        listed = self.path == "/v1/models"
        self.send_response((200 if known else 401) if listed else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "big"}]}).encode())

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Models)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def key(tmp_path: Path) -> str:
    (file := tmp_path / "key").touch(0o600)
    file.write_text(KEY)
    return str(file)


def check(**own: object) -> Finding:
    [found] = upstreams(Settings.model_validate({"models": {"far": {"upstream": own}}}))
    assert KEY not in found.detail + found.advice
    return found


def test_upstreams_are_checked_where_there_are_some() -> None:
    assert list(upstreams(Settings())) == []


def test_upstreams_check_finds_what_keeps_a_model_from_being_answered(url: str, key: str) -> None:
    assert check(url=f"{url}/v1", model="big", key_file=key).level == "ok"
    found = check(url=f"{url}/v1", key_file=key)
    assert (found.level, found.advice) == (
        "warning",
        "name one of its models in models.far.upstream.model",
    )
    found = check(url=f"{url}/v1", model="big")
    assert (found.level, "without a key" in found.detail) == ("error", True)
    found = check(url=url, model="big", key_file=key)
    assert found.advice == "the URL usually ends with /v1"
    found = check(url=f"{url}/v1", key_file=f"{key}.gone")
    assert (found.level, "no such file" in found.detail) == ("error", True)
    Path(key).write_text(f"{KEY}\n{KEY}")
    found = check(url=f"{url}/v1", key_file=key)
    assert (found.level, "is no API key" in found.detail) == ("error", True)


def test_upstreams_check_finds_a_server_that_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    found = check(url=f"http://127.0.0.1:{free}/v1")
    assert (found.level, found.advice) == (
        "warning",
        "start it, or correct models.far.upstream.url",
    )
