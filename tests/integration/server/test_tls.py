"""TLS: served when asked for, refused in one line when it cannot be, and no way past the caps."""

import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.server import START_SECONDS, Server, running_server, start_server
from tests.support.wait import eventually

FAKE = ("--set", "demo=never", "--set", "models.demo-echo.engine=fake")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("making a certificate needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def secure(
    tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]
) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("secure") / "home"
    pem, key = certificate
    settings = [*FAKE, "--set", f"server.tls_cert={pem}", "--set", f"server.tls_key={key}"]
    environ = {"SSL_CERT_FILE": str(pem)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(pem))  # for the client that asks whether it is ready
        with running_server(
            home, *settings, "--set", "server.max_connections=8", environ=environ
        ) as server:
            yield server


def port(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def client(server: Server, certificate: tuple[Path, Path]) -> httpx.Client:
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    return server.client(verify=trust)


def test_tls_serves_requests(secure: Server, certificate: tuple[Path, Path]) -> None:
    assert secure.url.startswith("https://")
    with client(secure, certificate) as one:
        assert one.get("/livez").status_code == 200
        body = {"model": "demo-echo", "prompt": "a", "max_tokens": 2}
        assert one.post("/api/v1/inference/text-generation", json=body).status_code == 200
    context = ssl.create_default_context(cafile=str(certificate[0]))
    with socket.create_connection(("127.0.0.1", port(secure)), timeout=10) as raw:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as sock:
            assert sock.version() in ("TLSv1.2", "TLSv1.3")


def test_tls_handshakes_that_never_end_keep_nobody_out(
    secure: Server, certificate: tuple[Path, Path]
) -> None:
    with contextlib.ExitStack() as stack, client(secure, certificate) as one:
        for _ in range(40):
            sock = socket.create_connection(("127.0.0.1", port(secure)), timeout=30)
            stack.enter_context(sock)
        assert one.get("/livez").status_code == 200
        assert sock.recv(1) == b""  # given up after the time that headers have
        assert one.get("/livez").status_code == 200
        eventually(lambda: 'reason="idle"' in one.get("/metrics").text)


@pytest.mark.parametrize("missing", ["cert.pem", "key.pem", "match"])
def test_tls_that_cannot_be_served_is_refused_in_one_line(
    tmp_path: Path, certificate: tuple[Path, Path], missing: str
) -> None:
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(certificate[0], pem)
    shutil.copy(certificate[1] if missing != "match" else certificate[0], key)
    if missing != "match":
        (tmp_path / missing).unlink()
    sets = [f"server.tls_cert={pem}", f"server.tls_key={key}"]
    server = start_server(tmp_path / "home", [*FAKE, "--set", sets[0], "--set", sets[1]])
    assert server.process.wait(START_SECONDS) == 1
    said = server.log.read_text().strip().splitlines()
    assert len(said) == 1
    assert str(key if missing == "match" else tmp_path / missing) in said[0]
