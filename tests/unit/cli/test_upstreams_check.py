"""``doctor`` says whether the servers behind models answer, take the key and have the model."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bitinglip.settings import Settings
from cli.checks import upstreams as checks
from cli.checks.findings import Finding
from cli.checks.upstreams import upstreams
from tests.support.certificates import make_certificate

KEY = "sk-of-another-server"


class _Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/slow"):
            self._drip()
            return
        known = self.headers["Authorization"] == f"Bearer {KEY}"
        listed = self.path == "/v1/models"
        self.send_response((200 if known else 401) if listed else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "big"}]}).encode())

    def _drip(self) -> None:
        """Answer a byte at a time, without an end: the client leaves."""
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b" ")
                time.sleep(0.01)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Answer on a port; yields the address without /v1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Models)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


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
    assert found.advice.startswith("the URL usually ends with /v1")
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


def test_upstreams_check_trusts_the_certificates_that_the_server_does(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is trusted by SSL_CERT_FILE is served by, and was told to be away."""
    certificate, private = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, private)
    with serving(tls) as url:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert check(url=f"{url}/v1", model="big", key_file=key).level == "ok"
        monkeypatch.setenv("SSL_CERT_FILE", "")
        found = check(url=f"{url}/v1", model="big", key_file=key)
    assert (found.level, "not trusted" in found.detail) == ("warning", True)
    assert "SSL_CERT_FILE" in found.advice


def test_upstreams_check_ends_with_a_server_whose_answer_does_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_SECONDS", 0.2)
    found = check(url=f"{url}/slow")
    assert (found.level, "too long" in found.detail) == ("warning", True)


def test_upstreams_check_tells_what_no_server_can_be_asked_with(url: str, key: str) -> None:
    """The port is beyond the highest; the key is empty, which a load refuses."""
    assert check(url="http://127.0.0.1:99999/v1").level == "warning"
    Path(key).write_text("\n")
    [found] = upstreams(
        Settings.model_validate({"models": {"far": {"upstream": {"url": url, "key_file": key}}}})
    )
    assert (found.level, "is no API key" in found.detail) == ("error", True)
